"""Every row of the table in docs/use/generate.md does what it says: honoured as by the library, refused, or without effect."""

import re
from pathlib import Path

import pytest
import torch
from transformers import (
    CompileConfig,
    GenerationConfig,
    LogitsProcessor,
    StoppingCriteria,
    WatermarkingConfig,
)

import specdec
from specdec.model.target import Target
from tiny import VOCABULARY, letters, random_prompt, tiny_model

TABLE = (
    (Path(__file__).parents[3] / "docs/use/generate.md").read_text().split("<!-- settings -->")[1]
)
CLAIMS = ("honoured", "refused", "without effect")
ROWS = re.findall(rf"^\| (.*?) \| ({'|'.join(CLAIMS)})\b.* \|$", TABLE, re.MULTILINE)
SETTINGS = {name: claim for names, claim in ROWS for name in re.findall(r"`(\w+)", names)}
ELSEWHERE = {"cache", "past_key_values"}  # test_generate_requests.py

MODEL = tiny_model("llama", seed=6)
IDS = torch.tensor([random_prompt(9, 31), random_prompt(9, 32)])
PLAIN = MODEL.generate(
    IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, eos_token_id=[VOCABULARY + 1], pad_token_id=0
)[:, 9:]  # fmt: skip
ENDS = PLAIN[0, 1:3].tolist()
SCORES = {"return_dict_in_generate": True, "output_scores": True}
SAMPLED = {"do_sample": True, "max_new_tokens": 1}


class Bans(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores.scatter(1, input_ids[:, -1:] + 1, -torch.inf)


class StopsAt12(StoppingCriteria):
    def __call__(self, input_ids, scores, **options):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 12)


# A value that is not the default, and what makes it matter.
HONOURED = {
    "do_sample": (True, {"max_new_tokens": 1}),
    "temperature": (0.5, SAMPLED),
    "top_k": (3, SAMPLED),
    "top_p": (0.6, SAMPLED),
    "min_p": (0.2, SAMPLED),
    "typical_p": (0.5, SAMPLED),
    "top_h": (0.3, SAMPLED),
    "epsilon_cutoff": (0.05, SAMPLED),
    "eta_cutoff": (0.05, SAMPLED),
    "repetition_penalty": (1.4, {}),
    "encoder_repetition_penalty": (1.4, {}),
    "no_repeat_ngram_size": (1, {}),
    "encoder_no_repeat_ngram_size": (1, {}),
    "bad_words_ids": ([[PLAIN[0, 0].item()]], {}),
    "sequence_bias": ([[[7], 3.0]], {}),
    "suppress_tokens": ([5], {}),
    "begin_suppress_tokens": (PLAIN[:, 0].tolist(), {}),
    "forced_bos_token_id": (7, {"input_ids": IDS[:, :1]}),
    "forced_eos_token_id": (7, {}),
    "min_length": (13, {"eos_token_id": ENDS}),
    "min_new_tokens": (4, {"eos_token_id": ENDS}),
    "exponential_decay_length_penalty": ((2, 1.5), {"eos_token_id": ENDS}),
    "remove_invalid_values": (True, {"bad_words_ids": [[5]]}),
    "renormalize_logits": (True, {}),
    "watermarking_config": (WatermarkingConfig(bias=4.0), {}),
    "logits_processor": ([Bans()], {}),
    "prefix_allowed_tokens_fn": (lambda row, ids: [3 + row, 10], {}),
    "max_length": (12, {"max_new_tokens": None}),
    "max_new_tokens": (3, {}),
    "max_time": (0.0, {}),
    "stop_strings": ([letters().decode(PLAIN[0, 1:3])], {"tokenizer": letters()}),
    "eos_token_id": (ENDS, {}),
    "stopping_criteria": ([StopsAt12()], {}),
    "pad_token_id": (4, {"eos_token_id": ENDS[:1]}),
    "num_return_sequences": (2, SAMPLED),
    "return_dict_in_generate": (True, {"return_dict_in_generate": False, "output_scores": False}),
    "output_scores": (True, {"output_scores": False}),
    "output_logits": (True, {}),
    "attention_mask": (torch.arange(9).expand(2, 9).ge(2).long(), {}),
    "generation_config": (GenerationConfig(repetition_penalty=1.4), {}),
}
REFUSED = {
    "num_beams": 2,
    "constraints": [1],
    "force_words_ids": [[3]],
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "prompt_lookup_num_tokens": 3,
    "assistant_model": MODEL,
    "assistant_tokenizer": letters(),
    "assistant_early_exit": 2,
    "use_mtp": True,
    "is_assistant": True,
    "guidance_scale": 2.0,
    "negative_prompt_ids": IDS,
    "negative_prompt_attention_mask": torch.ones_like(IDS),
    "use_cache": False,
    "cache_implementation": "paged",
    "token_healing": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "synced_gpus": True,
    "inputs_embeds": torch.zeros(2, 9, 48),
    "position_ids": torch.zeros_like(IDS),
}
# The library's words for other ways to decode.
WAYS = {
    "num_beams": "beam_search",
    "constraints": "constrained_beam_search",
    "force_words_ids": "constrained_beam_search",
    "penalty_alpha": "contrastive_search",
    "dola_layers": "dola_generation",
    "prompt_lookup_num_tokens": "assisted_generation",
    "assistant_early_exit": "assisted_generation",
    "use_mtp": "assisted_generation",
}
WITHOUT_EFFECT = {
    "early_stopping": True,
    "length_penalty": 3.0,
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "cache_config": {"nbits": 4},
    "max_cache_len": 3,
    "compile_config": CompileConfig(),
    "disable_compile": True,
    "prefill_chunk_size": 2,
    "low_memory": True,
    "continuous_batching_config": {"block_size": 2},
    "speculation_type": "dflash",
    "assistant_confidence_threshold": 0.9,
    "assistant_ensemble_weight": 0.5,
    "assistant_lookbehind": 3,
    "target_lookbehind": 3,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "max_matching_ngram_size": 3,
    "bos_token_id": 5,
    "decoder_start_token_id": 5,
}


def outcome(write, options):
    """What two results are compared by: of a draw, what it was drawn from."""
    options = {"max_new_tokens": 6, "eos_token_id": [VOCABULARY + 1], "pad_token_id": 0, **SCORES, **options}  # fmt: skip
    ids = options.pop("input_ids", IDS)
    mask = options.pop("attention_mask", torch.ones_like(ids))
    out = write(ids, attention_mask=mask, **options)
    if isinstance(out, torch.Tensor):
        return {"tensor": out}
    found = {name: torch.stack(out[name]) for name in ("scores", "logits") if out.get(name)}
    return found if options.get("do_sample") else found | {"sequences": out.sequences}


def alike(one, other):
    """Ours goes first: it has zeros where a row had ended, the library what it would have gone on with."""
    if one.keys() != other.keys():
        return False
    pairs = [(one[name], other[name]) for name in one]
    if any(x.shape != y.shape for x, y in pairs):
        return False
    return all(
        torch.allclose(x, y.where(x.any(-1, keepdim=True), 0), rtol=1e-5, atol=1e-5)
        for x, y in pairs
    )


def ours(options):
    target = Target(MODEL)
    return outcome(lambda ids, **rest: specdec.generate(target, ids, "lookup", **rest), options)


def library(options):
    return outcome(MODEL.generate, options)


def test_every_generation_setting_is_documented():
    settings = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert settings - {"transformers_version"} <= set(SETTINGS)
    assert len(ROWS) == TABLE.count("\n| `")
    shown = (HONOURED, REFUSED, WITHOUT_EFFECT)
    for claim, values in zip(CLAIMS, shown, strict=True):
        told = {name for name, found in SETTINGS.items() if found == claim}
        assert told - ELSEWHERE == set(values)


def known(values):
    """Older releases of the library lack some."""
    arguments = {*HONOURED, *REFUSED} - vars(GenerationConfig()).keys()
    late = {"use_mtp", "speculation_type", "max_cache_len", "top_h"}
    return [
        name for name in values if name in arguments - late or hasattr(GenerationConfig(), name)
    ]


@pytest.mark.parametrize("name", known(HONOURED))
def test_honoured_settings_have_the_same_effect_as_in_transformers(name):
    value, rest = HONOURED[name]
    found = ours({**rest, name: value})
    assert alike(found, library({**rest, name: value}))
    assert not alike(found, ours(rest))


@pytest.mark.parametrize("name", known(REFUSED))
def test_error_names_the_refused_setting(name):
    way = WAYS.get(name)
    message = f"{name}: expected" if way is None else f"generation_config: .* got {way}"
    with pytest.raises(ValueError, match=message):
        ours({name: REFUSED[name]})


@pytest.mark.parametrize("name", known(WITHOUT_EFFECT))
def test_settings_without_effect_have_none_in_transformers_either(name):
    plain, options = ours({}), {name: WITHOUT_EFFECT[name]}
    assert alike(ours(options), plain)
    assert alike(plain, library(options))
