"""`specdec.generate` beside the library's own `generate`, one unpadded row at a time."""

import functools
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

import specdec
from every_drafter import mixed, redrafter
from specdec.drafters import LookupDrafter
from specdec.target import Target
from tiny import VOCABULARY, random_prompt, tiny_model

NEVER = [VOCABULARY + 1]
RECIPE = Path(__file__).parents[2] / "docs" / "recipe"
PROMPTS = [random_prompt(4, 21) * 2, random_prompt(11, 22), random_prompt(3, 23) * 4]


@functools.cache
def target_of(seed=6):
    return Target(tiny_model("llama", seed=seed))


def padded(prompts, side="left"):
    rows = [torch.tensor(p) for p in prompts]
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
    return pad(rows), pad([torch.ones_like(row) for row in rows])


def library(prompt, seed=6, **options):
    """The library's tokens for one row alone."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": NEVER} | options
    out = tiny_model("llama", seed=seed).generate(
        ids, attention_mask=torch.ones_like(ids), **options
    )
    return out[0, len(prompt) :].tolist()


def ours(prompts, drafter, side="left", **options):
    """Our tokens for a batch of them, without padding behind a row's end."""
    ids, mask = padded(prompts, side)
    options = {"pad_token_id": 0, "eos_token_id": NEVER} | options
    out = specdec.generate(target_of(), ids, drafter, attention_mask=mask, **options)
    assert torch.equal(out[:, : ids.shape[1]], ids)
    return out[:, ids.shape[1] :].tolist()


def assert_like_library(prompts, options, *, of_row=lambda row: {}, side="left"):
    """Rows of a ragged batch are what the library writes for each of them alone, whatever drafts."""
    expected = [library(p, **options, **of_row(row)) for row, p in enumerate(prompts)]
    longest = max(map(len, expected))
    filled = [tokens + [0] * (longest - len(tokens)) for tokens in expected]
    for drafter in ("none", LookupDrafter(), redrafter(target_of())):
        assert ours(prompts, drafter, side, **options) == filled
    return expected


class CountsTokens(LogitsProcessor):
    """Bans whatever a row's length names, and remembers what it was asked for."""

    def __init__(self):
        self.lengths = []

    def __call__(self, input_ids, scores):
        assert input_ids.shape[0] == scores.shape[0] == 1
        assert scores.dtype == torch.float32
        self.lengths.append(input_ids.shape[1])
        scores[:, input_ids.shape[1] % VOCABULARY] = -torch.inf
        return scores


def plain_text(prompt, count=12):
    return library(prompt, max_new_tokens=count)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[plain_text(PROMPTS[0])[0]], plain_text(PROMPTS[1])[:2]]},
        {"sequence_bias": [[plain_text(PROMPTS[0])[1:3], -20.0], [[7], 3.0]]},
        {"suppress_tokens": plain_text(PROMPTS[0])[:2]},
        {"begin_suppress_tokens": [plain_text(p)[0] for p in PROMPTS]},
        {"forced_eos_token_id": 5},
        {"min_new_tokens": 7, "eos_token_id": plain_text(PROMPTS[0])[:3]},
        {"exponential_decay_length_penalty": (3, 1.4), "eos_token_id": [9]},
        {"encoder_repetition_penalty": 1.5},
        {"encoder_no_repeat_ngram_size": 1},
        {"remove_invalid_values": True, "renormalize_logits": True},
        {"eos_token_id": [plain_text(p)[at] for at, p in zip((0, 4, 11), PROMPTS, strict=True)]},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_settings_are_honoured(options, side):
    expected = assert_like_library(PROMPTS, {"max_new_tokens": 12} | options, side=side)
    # A setting that changes nothing here would be honoured by doing nothing.
    changed = expected != [plain_text(p) for p in PROMPTS]
    assert changed or "remove_invalid_values" in options


def test_a_row_is_told_which_one_it_is():
    def allowed(row, ids):
        return [3 + row, 10 + row, (int(ids[-1]) * 7 + row) % VOCABULARY]

    options = {"max_new_tokens": 10}
    assert_like_library(PROMPTS[:1], options | {"prefix_allowed_tokens_fn": allowed})
    expected = [
        library(p, **options, prefix_allowed_tokens_fn=lambda _, ids, row=row: allowed(row, ids))
        for row, p in enumerate(PROMPTS)
    ]
    for drafter in ("none", "lookup"):
        assert ours(PROMPTS, drafter, **options, prefix_allowed_tokens_fn=allowed) == expected


def test_nothing_is_asked_behind_the_end_of_a_text():
    end = plain_text(PROMPTS[0])[5]

    def allowed(row, ids):
        assert int(ids[-1]) != end or len(ids) <= len(PROMPTS[0])
        return list(range(VOCABULARY))

    target = target_of()
    ids = torch.tensor([PROMPTS[0]])
    for drafter in ("none", mixed(target)):
        out = specdec.generate(
            target, ids, drafter, eos_token_id=[end], prefix_allowed_tokens_fn=allowed, max_new_tokens=12
        )  # fmt: skip
        assert out[0, -1] == end


def test_a_processor_of_the_callers_is_asked_as_in_plain_generation():
    options = {"max_new_tokens": 12, "eos_token_id": NEVER}
    theirs, own = CountsTokens(), CountsTokens()
    expected = library(PROMPTS[0], **options, logits_processor=[theirs])
    drafter = redrafter(target_of())
    assert ours(PROMPTS[:1], drafter, **options, logits_processor=[own]) == [expected]
    assert own.lengths == theirs.lengths
    assert_like_library(PROMPTS, options | {"logits_processor": [CountsTokens()]})


class StopsAt(StoppingCriteria):
    def __init__(self, length):
        self.length, self.asked = length, []

    def __call__(self, input_ids, scores, **options):
        self.asked.append(input_ids.shape[1])
        done = input_ids.shape[1] >= self.length
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool)


@pytest.mark.parametrize("length", [13, 14, 16])
def test_criteria_of_the_callers_are_asked_after_each_token(length):
    theirs, own = StopsAt(length), StopsAt(length)
    expected = library(PROMPTS[0], max_new_tokens=12, stopping_criteria=[theirs])
    assert len(expected) == length - len(PROMPTS[0])
    drafter = mixed(target_of())
    assert ours(PROMPTS[:1], drafter, max_new_tokens=12, stopping_criteria=[own]) == [expected]
    assert own.asked == theirs.asked
    assert_like_library(PROMPTS, {"max_new_tokens": 12, "stopping_criteria": [StopsAt(length)]})


def test_lengths_are_the_librarys():
    criteria = StoppingCriteriaList([MaxLengthCriteria(15)])
    assert_like_library(PROMPTS[1:2], {"stopping_criteria": criteria})
    assert_like_library(PROMPTS[1:2], {"max_length": 17})
    assert_like_library(PROMPTS[1:2], {})  # the library's default length
    config = GenerationConfig(max_new_tokens=7, eos_token_id=NEVER, pad_token_id=0)
    assert_like_library(PROMPTS, {"generation_config": config, "eos_token_id": NEVER})
    ended = {"max_time": 0.0, "max_new_tokens": 12}
    assert len(ours(PROMPTS[:1], "none", **ended)[0]) == 1


def test_scores_and_logits_of_the_kept_tokens_are_the_librarys():
    options = {
        "max_new_tokens": 11, "repetition_penalty": 1.3, "output_scores": True, "output_logits": True,
        "return_dict_in_generate": True, "eos_token_id": NEVER, "pad_token_id": 0,
    }  # fmt: skip
    ids, mask = padded(PROMPTS)
    target = target_of()
    out = specdec.generate(target, ids, mixed(target), attention_mask=mask, **options)
    assert isinstance(out, GenerateDecoderOnlyOutput)
    assert len(out.scores) == len(out.logits) == 11
    for row, prompt in enumerate(PROMPTS):
        one = torch.tensor([prompt])
        theirs = target.model.generate(one, attention_mask=torch.ones_like(one), **options)
        assert (
            out.sequences[row, ids.shape[1] :].tolist()
            == theirs.sequences[0, len(prompt) :].tolist()
        )
        for name in ("scores", "logits"):
            found = torch.stack(getattr(out, name))[:, row]
            torch.testing.assert_close(found, torch.stack(getattr(theirs, name))[:, 0])
    # An ended row has zeros.
    end = out.sequences[0, ids.shape[1] + 2].item()
    cut = specdec.generate(
        target, ids, mixed(target), attention_mask=mask, **options | {"eos_token_id": [end]}
    )
    assert not cut.scores[-1][0].any() and torch.equal(cut.scores[2][0], out.scores[2][0])


class Collects(BaseStreamer):
    def __init__(self):
        self.columns, self.ended = [], False

    def put(self, value):
        self.columns.append(value)

    def end(self):
        self.ended = True


def test_streamers_get_each_token_once():
    target = target_of()
    for prompts in (PROMPTS[:1], PROMPTS):
        ids, mask = padded(prompts)
        streamer = Collects()
        end = plain_text(PROMPTS[0])[4]
        out = specdec.generate(
            target, ids, mixed(target), streamer=streamer, attention_mask=mask, max_new_tokens=12,
            eos_token_id=[end], pad_token_id=0,
        )  # fmt: skip
        assert streamer.ended
        assert torch.equal(streamer.columns[0], ids)
        assert torch.equal(torch.stack(streamer.columns[1:], 1), out[:, ids.shape[1] :])


def test_a_later_call_goes_on_where_an_earlier_one_ended(monkeypatch):
    target, read = target_of(), []
    prefill = target.prefill
    monkeypatch.setattr(
        target, "prefill", lambda ids, *rest: read.append(ids.shape[1]) or prefill(ids, *rest)
    )
    options = {"max_new_tokens": 8, "eos_token_id": NEVER, "return_dict_in_generate": True}
    first = specdec.generate(target, torch.tensor([PROMPTS[1]]), "lookup", **options)
    longer = torch.cat([first.sequences, torch.tensor([PROMPTS[2]])], 1)
    again = specdec.generate(
        target, longer, "lookup", past_key_values=first.past_key_values, **options
    )
    assert read == [len(PROMPTS[1]), len(PROMPTS[2]) + 1]
    tokens = again.sequences[0, longer.shape[1] :].tolist()
    assert tokens == library(longer[0].tolist(), max_new_tokens=8)
    # Another drafter has read nothing yet: it begins anew, and the text is the same.
    other = specdec.generate(
        target, longer, "none", past_key_values=again.past_key_values, **options
    )
    assert torch.equal(other.sequences, again.sequences)
    assert read[-1] == longer.shape[1]


def test_the_library_can_call_the_method():
    model, ids = tiny_model("llama", seed=6), torch.tensor([PROMPTS[1]])
    options = {"max_new_tokens": 9, "eos_token_id": NEVER}
    expected = library(PROMPTS[1], max_new_tokens=9)
    out = model.generate(
        ids, custom_generate=specdec.method, drafter="lookup", target=target_of(), **options
    )
    assert out[0, ids.shape[1] :].tolist() == expected
    bound = functools.partial(specdec.method, drafter="lookup")
    out = model.generate(ids, custom_generate=bound, **options)
    assert out[0, ids.shape[1] :].tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 3}, "generation_config: expected greedy search or sampling, got beam_search"),
        ({"num_beams": 2, "do_sample": True}, "got beam_sample"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "got contrastive_search"),
        ({"dola_layers": "low"}, "got dola_generation"),
        ({"prompt_lookup_num_tokens": 3}, "got assisted_generation"),
        ({"guidance_scale": 2.0}, "guidance_scale: expected None or 1"),
        ({"use_cache": False}, "use_cache"),
        ({"cache_implementation": "static"}, "cache_implementation: .* got 'static'"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
        ({"position_ids": torch.tensor([[3, 4]])}, "position_ids: expected those of the mask"),
        ({"assistant_model": tiny_model("llama", seed=6)}, "assistant_model"),
        ({"synced_gpus": True}, "synced_gpus"),
        ({"negative_prompt_ids": torch.tensor([[3]])}, "negative_prompt_ids"),
        ({"custom_generate": "somewhere"}, "custom_generate"),
        ({"inputs_embeds": torch.zeros(1, 2, 48)}, "inputs_embeds"),
        ({"do_sample": True, "seed": -1}, r"seed: expected 0 to 2\*\*64 - 1, got -1"),
        ({"do_sample": True, "streams": [1, 2]}, r"streams: expected one per row, 1, got \[1, 2\]"),
        ({"do_sample": True, "streams": [1 << 32]}, "streams: expected numbers from 0"),
        ({"stop_strings": ["a"]}, "tokenizer"),
        ({"nonsense": 3}, "nonsense"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        specdec.generate(target_of(), torch.tensor([[3, 4]]), "none", max_new_tokens=4, **options)


def test_a_cache_of_the_librarys_is_refused():
    target, ids = target_of(), torch.tensor([[3, 4, 5]])
    past = DynamicCache()
    target.model(ids[:, :2], past_key_values=past)
    with pytest.raises(ValueError, match="past_key_values: .* got DynamicCache"):
        specdec.generate(target, ids, "none", max_new_tokens=4, past_key_values=past)


def test_bad_arguments_are_named():
    target = target_of()
    ids = torch.tensor([[3, 4]])
    for message, arguments in {
        "max_nodes: expected 1 to 256, got 257": {"input_ids": ids, "max_nodes": 257},
        "input_ids: expected device cpu, got meta": {"input_ids": ids.to("meta")},
        "all rows on one device, got ['cpu', 'meta']": {"input_ids": [ids[0], ids[0].to("meta")]},
        "input_ids: expected shape [B, L], got [2]": {"input_ids": ids[0]},
        "attention_mask: expected shape [1, 2], got [1, 3]": {
            "input_ids": ids, "attention_mask": torch.ones(1, 3)
        },
        "drafter: expected one of": {"input_ids": ids, "drafter": "unknown"},
        "attention_mask: expected none beside a list": {
            "input_ids": [ids[0]], "attention_mask": torch.ones(1, 2)
        },
        "input_ids: expected at least one row, got none": {"input_ids": []},
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)):
            specdec.generate(target, **arguments)


def test_a_recipe_in_a_folder_runs():
    model, ids = tiny_model("llama", seed=6), torch.tensor([PROMPTS[1]])
    out = model.generate(
        ids, custom_generate=str(RECIPE), trust_remote_code=True, drafter="lookup", max_new_tokens=9,
        eos_token_id=NEVER,
    )  # fmt: skip
    assert out[0, ids.shape[1] :].tolist() == library(PROMPTS[1], max_new_tokens=9)


def test_every_setting_has_its_place_in_the_documentation():
    table = (RECIPE.parent / "generate.md").read_text().split("<!-- settings -->")[1]
    settings = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    told = set(re.findall(r"`(\w+)", table))
    assert settings - {"transformers_version"} <= told
