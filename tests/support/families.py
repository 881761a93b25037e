"""Tiny random models of many families, by transformers' names: supported and unsupported ones."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

import every_drafter
from specdec import Session, load_target
from specdec.pickers import PathPicker
from specdec.sampling import Sampling
from tiny import POSITIONS, SEED, VOCABULARY, library_greedy, library_sampled, random_prompt

WINDOW = 7
# Of these each configuration takes what it knows. Embeddings are not shared with heads: text would repeat itself.
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": WINDOW,
    "max_position_embeddings": POSITIONS, "initializer_range": 0.3, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_k": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
    "shared_expert_intermediate_size": 32,
}  # fmt: skip
# Keys of another size than values.
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
OPTIONS = {
    "aria_text": {"moe_num_shared_experts": 1},
    "biogpt": {"num_key_value_heads": None},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"layer_types": TYPES},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "exaone4": {"layer_types": TYPES},
    "falcon": {"head_dim": None},
    "gemma3_text": {"layer_types": TYPES},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "gpt_neo": {"num_layers": 3, "attention_types": [[["global", "local", "global"], 1]]},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "longcat_flash": LATENT,
    "minicpm3": LATENT,
    "olmo3": {"layer_types": TYPES},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 64},
    "smollm3": {"no_rope_layers": [1, 0, 1], "no_rope_layer_interval": 2},
    "t5": {
        "head_dim": None,
        "d_model": 64,
        "d_ff": 64,
        "num_layers": 1,
        "num_heads": 4,
        "d_kv": 16,
    },
}
WORKING = [
    "afmoe", "apertus", "arcee", "aria_text", "biogpt", "bitnet", "codegen", "cohere", "cohere2", "cohere2_moe", "cwm",
    "diffllama", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "flex_olmo", "gemma", "gemma2",
    "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite", "granitemoe",
    "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jais2", "jetmoe", "llama", "minimax_m2",
    "ministral", "ministral3", "mistral", "mixtral", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi",
    "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open", "starcoder2",
    "vaultgemma",
]  # fmt: skip
STATEFUL = "layers of full or sliding attention, got"
VALUES = "as latent attention has them"
OPTION_LOST = "layers that do not hand their options on"
# Each with the words it is refused with.
REFUSED = {
    "bamba": STATEFUL,
    "bloom": "word_embeddings_layernorm",
    "deepseek_v2": VALUES,
    "deepseek_v3": VALUES,
    "doge": "got a mask of the layer's own too",
    "falcon": "alibi",
    "falcon_h1": STATEFUL,
    "gpt_neo": "hidden states alone, got a tuple",
    "gpt_oss": "got attention sinks too",
    "jamba": STATEFUL,
    "lfm2": "embedding_norm",
    "llama4_text": "got chunked_attention",
    "longcat_flash": VALUES,
    "mamba": STATEFUL,
    "minicpm3": VALUES,
    "minimax": STATEFUL,
    "mpt": "max_position_embeddings",
    "nanochat": "expected prefill to agree with the model's own forward",
    "nemotron": OPTION_LOST,
    "nemotron_h": STATEFUL,
    "phimoe": f"with the window {WINDOW} of its configuration, got None",
    "qwen3_next": STATEFUL,
    "recurrent_gemma": f"{STATEFUL}|max_position_embeddings",  # older releases name no types
    "rwkv": "ln_out",
    "stablelm": OPTION_LOST,
    "t5": "a decoder alone, got T5ForConditionalGeneration",
}
# Models that read pictures, whose text alone is written: what their vision is made of, and what their decoder.
PATCHES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
VISION_LANGUAGE = {
    "gemma3": (PATCHES, {"layer_types": TYPES}),
    "idefics3": (PATCHES, {"sliding_window": None}),
    "llava": (PATCHES, {"sliding_window": None}),
    "mistral3": (PATCHES, {}),
    # Three positions per token.
    "qwen2_vl": (
        {"depth": 1, "hidden_size": 64, "embed_dim": 32, "num_heads": 2, "patch_size": 8},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
    ),
}  # fmt: skip
# The first release tried that runs them as we do, and what they are refused with before it.
SINCE = {
    "codegen": ("5.24", "hidden states alone, got a tuple"),
    "gptj": ("5.24", "hidden states alone, got a tuple"),
    "qwen2_vl": ("5.23", "too many indices"),
}
SOFT_CAPPED = ("gemma2", "vaultgemma")
NEW = 8
DRAFTERS = (
    every_drafter.plain,
    every_drafter.lookup,
    every_drafter.redrafter,
    every_drafter.kangaroo,
    every_drafter.own_model,
    every_drafter.training_free,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a family."""

    model_type: str
    model: str
    """The class's name."""
    works: bool
    reason: str
    """Why it was refused, or the drafters whose text was the library's."""


def tiny_of(
    model_type: str, experts_implementation: str = "eager", **options: Any
) -> PreTrainedModel:
    """A tiny random model of a family in float64, in evaluation mode."""
    options = {**SHAPE, **EXPERTS, **OPTIONS.get(model_type, {}), **options}
    plain = AutoConfig.for_model(model_type)
    known = {
        name: value
        for name, value in options.items()
        if value is not None and (hasattr(plain, name) or name not in SHAPE | EXPERTS)
    }
    config = AutoConfig.for_model(model_type, **known)
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    # The library's grouped products of experts have no float64.
    mixture = (
        {"experts_implementation": experts_implementation} if _has_experts(auto, config) else {}
    )
    # Older releases have one attention alone that knows of soft-caps.
    eager = {"attn_implementation": "eager"} if model_type in SOFT_CAPPED else {}
    return auto.from_config(config, **eager, **mixture).double().eval()


def tiny_vision_of(model_type: str) -> PreTrainedModel:
    """A tiny random vision-language model in float64, in evaluation mode."""
    plain = AutoConfig.for_model(model_type)
    vision, text = VISION_LANGUAGE[model_type]
    parts = {"text_config": {**SHAPE, **text}, "vision_config": vision}
    for name, options in parts.items():
        parts[name] = {**options, "model_type": getattr(plain, name).model_type}
    torch.manual_seed(0)
    config = type(plain)(**parts, tie_word_embeddings=False)
    return AutoModelForImageTextToText.from_config(config).double().eval()


def _has_experts(auto, config):
    return auto._model_mapping[type(config)]._can_set_experts_implementation()


def check_works(verdict: Verdict) -> None:
    """Raise AssertionError unless the family decodes, or is refused as releases that are too old for it are."""
    release, reason = SINCE.get(verdict.model_type, ("0", ""))
    if Version(transformers.__version__) >= Version(release):
        assert verdict.works, verdict.reason
    else:
        assert not verdict.works and reason in verdict.reason, verdict.reason


def judge(model: PreTrainedModel) -> Verdict:
    """Load a model as a target and compare its text, greedy and sampled, drafted in every way, with the library's.

    Raises AssertionError where a model is taken but writes other text.
    """
    verdict = partial(Verdict, model.config.model_type, type(model).__name__)
    try:
        target = load_target(model)
    except ValueError as error:
        assert type(model).__name__ in str(error), "refused without its name"
        return verdict(False, str(error))
    prompts = [random_prompt(length, length) for length in (3, 2 * WINDOW)]
    expected = [library_greedy(model, prompt, NEW) for prompt in prompts]
    assert len({token for text in expected for token in text}) > 3, "text that shows nothing"
    sampled = [library_sampled(model, p, NEW, stream) for stream, p in enumerate(prompts)]
    for drafter in DRAFTERS:
        session = Session(target, drafter(target), max_nodes=8)
        written = session.generate(prompts, max_new_tokens=NEW)
        assert written.tokens == expected, drafter.__name__
        walk = PathPicker(Sampling(SEED, torch.arange(len(prompts))))
        drawn = session.generate(prompts, max_new_tokens=NEW, picker=walk)
        assert drawn.tokens == sampled, f"sampled, {drafter.__name__}"
    return verdict(True, ", ".join(drafter.__name__ for drafter in DRAFTERS))
