"""Tiny random models of many families, and transformers' greedy text."""

from functools import lru_cache
from pathlib import Path
from string import ascii_letters, digits

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from specdec_kernels import pick_tokens

VOCABULARY = 61
SEED = 23
POSITIONS = 160
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,  # wide enough that greedy text does not settle on one token
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WINDOW = 7
# Heads of a size that kernels have.
WIDE = {**SHAPE, "num_hidden_layers": 2, "head_dim": 16}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=8),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=WINDOW),
    "phi3": lambda: Phi3Config(**SHAPE),
    "gemma3": lambda: Gemma3TextConfig(
        **SHAPE,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gemma2": lambda: Gemma2Config(**SHAPE, head_dim=8, sliding_window=WINDOW),
    "granite": lambda: GraniteConfig(
        **SHAPE, embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5
    ),
    "gpt2": lambda: GPT2Config(
        **SHAPE, scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False
    ),
}
FAMILIES = list(CONFIGS)
CONFIGS |= {
    "llama-16": lambda: LlamaConfig(**WIDE),
    "qwen3-16": lambda: Qwen3Config(**WIDE),
    "mistral-16": lambda: MistralConfig(**WIDE, sliding_window=WINDOW),
}


@lru_cache(maxsize=64)
def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    with torch.inference_mode(False):  # usable in any mode, whichever test asks first
        torch.manual_seed(seed)
        # Older releases run Gemma 2 with an attention that leaves out its soft-cap.
        options = {"attn_implementation": "eager"} if family == "gemma2" else {}
        model = AutoModelForCausalLM.from_config(CONFIGS[family](), **options)
        return model.to(dtype).eval()


def letters() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are single letters and digits."""
    vocabulary = {letter: i for i, letter in enumerate((ascii_letters + digits)[:VOCABULARY])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="a")


def random_prompt(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


def library_greedy(
    model: PreTrainedModel, prompt: list[int], new_tokens: int, eos: list[int] | None = None
) -> list[int]:
    """The library's own greedy text, one unpadded row."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        # An id that is never picked: None would bring back the generation config's.
        eos_token_id=eos or [VOCABULARY + 1],
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def library_sampled(
    model: PreTrainedModel, prompt: list[int], new_tokens: int, stream: int, **how: float
) -> list[int]:
    """Text drawn with the noise of a stream from what the library's own forward says, one unpadded row."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(new_tokens):
            token = pick_tokens(
                model(ids, use_cache=False).logits[:, -1],
                seed=SEED,
                streams=torch.tensor([stream]),
                positions=torch.tensor([ids.shape[1]]),
                **how,
            )
            ids = torch.cat([ids, token[:, None]], 1)
    return ids[0, len(prompt) :].tolist()


def save_chat_model(folder: Path) -> None:
    """Write a tiny model with all that writing answers takes: weights, a tokenizer, a chat template."""
    tokenizer = letters()
    turns = "{% for m in messages %}U{{ m['content'] }}{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}A{% endif %}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(**{**WIDE, "max_position_embeddings": 8192})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
