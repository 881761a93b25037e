"""`specdec.generate` beside the library's own `generate`, one unpadded row at a time."""

import functools

import pytest
import torch
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    MaxLengthCriteria,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

import specdec
from every_drafter import redrafter
from scripted import ScriptedDrafter
from specdec.drafters import LookupDrafter
from specdec.model.target import Target
from tiny import VOCABULARY, random_prompt, tiny_model

NEVER = [VOCABULARY + 1]
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
    out = specdec.generate(target_of(), ids, drafter, max_nodes=16, attention_mask=mask, **options)
    assert torch.equal(out[:, : ids.shape[1]], ids)
    return out[:, ids.shape[1] :].tolist()


def scripted(prompts, texts, right=1.0):
    """A drafter that knows how prompts go on, and proposes other branches too."""
    known = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    return ScriptedDrafter(known, right=right, seed=1, most_proposals=24, vocabulary=VOCABULARY)


def assert_like_library(prompts, options, *, of_row=lambda row: {}, side="left"):
    """Rows of a ragged batch are what the library writes for each of them alone, whatever drafts."""
    expected = [library(p, **options | of_row(row)) for row, p in enumerate(prompts)]
    longest = max(map(len, expected))
    filled = [tokens + [0] * (longest - len(tokens)) for tokens in expected]
    knowing = [scripted(prompts, expected, right) for right in (0.7, 1.0)]
    for drafter in ("none", LookupDrafter(), redrafter(target_of()), *knowing):
        assert ours(prompts, drafter, side, **options) == filled
    # Several tokens were kept at once: each of them was picked along its own path.
    assert all(max(drafter.accepted) >= 2 for drafter in knowing)
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
def test_generation_settings_equal_transformers(options, side):
    expected = assert_like_library(PROMPTS, {"max_new_tokens": 12} | options, side=side)
    # A setting that changes nothing here would be honoured by doing nothing.
    changed = expected != [plain_text(p) for p in PROMPTS]
    assert changed or "remove_invalid_values" in options


def test_prefix_allowed_tokens_fn_receives_the_row_index():
    def allowed(row, ids):
        return [3 + row, 10 + row, (int(ids[-1]) * 7 + row) % VOCABULARY]

    options = {"max_new_tokens": 10}
    assert_like_library(PROMPTS[:1], options | {"prefix_allowed_tokens_fn": allowed})
    expected = [
        library(p, **options, prefix_allowed_tokens_fn=lambda _, ids, row=row: allowed(row, ids))
        for row, p in enumerate(PROMPTS)
    ]
    for drafter in ("none", scripted(PROMPTS, expected)):
        assert ours(PROMPTS, drafter, **options, prefix_allowed_tokens_fn=allowed) == expected
    assert max(drafter.accepted) >= 2


@pytest.mark.parametrize("at", range(2, 8))
def test_processors_are_not_called_after_an_eos_token(at):
    text = plain_text(PROMPTS[0])
    end = text[at]
    assert end not in text[:at]

    def allowed(row, ids):
        assert int(ids[-1]) != end or len(ids) <= len(PROMPTS[0])
        return list(range(VOCABULARY))

    # What would come behind the end is proposed too.
    for drafter in ("none", scripted(PROMPTS[:1], [text])):
        options = {"eos_token_id": [end], "max_new_tokens": 12, "prefix_allowed_tokens_fn": allowed}
        assert ours(PROMPTS[:1], drafter, **options) == [text[: at + 1]]
    assert max(drafter.accepted) > 0


def test_custom_processor_is_called_as_in_plain_generation():
    options = {"max_new_tokens": 12, "eos_token_id": NEVER}
    theirs, own = CountsTokens(), CountsTokens()
    expected = library(PROMPTS[0], **options, logits_processor=[theirs])
    drafter = scripted(PROMPTS[:1], [expected])
    assert ours(PROMPTS[:1], drafter, **options, logits_processor=[own]) == [expected]
    assert own.lengths == theirs.lengths
    assert max(drafter.accepted) >= 2
    assert_like_library(PROMPTS, options | {"logits_processor": [CountsTokens()]})


def repetition_penalty(ignored):
    processor = RepetitionPenaltyLogitsProcessor(0.2)
    processor.prompt_ignore_length = ignored  # older releases do not take a tensor at once
    return {"logits_processor": [processor]}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["number", "tensor"])
@pytest.mark.parametrize("columns", [8, 12])
def test_repetition_penalty_respects_prompt_ignore_length(side, kind, columns):
    _, mask = padded(PROMPTS, side)
    own = [columns - int((row == 0).sum()) for row in mask[:, :columns]]
    ignored = columns if kind == "number" else torch.full((len(PROMPTS),), columns)
    options = {"max_new_tokens": 12, "eos_token_id": NEVER}
    expected = assert_like_library(
        PROMPTS,
        options | repetition_penalty(ignored),
        of_row=lambda row: repetition_penalty(own[row]),
        side=side,
    )
    assert expected != [library(p, repetition_penalty=0.2, **options) for p in PROMPTS]


def test_prompt_ignore_length_of_another_batch_size_is_rejected():
    options = repetition_penalty(torch.tensor([4, 4]))
    with pytest.raises(ValueError, match="prompt_ignore_length: expected one per row, 3, got 2"):
        ours(PROMPTS, "none", max_new_tokens=4, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda ids: EncoderRepetitionPenaltyLogitsProcessor(0.2, ids),
        lambda ids: EncoderNoRepeatNGramLogitsProcessor(1, ids),
    ],
    ids=["repetition", "ngrams"],
)
def test_encoder_processors_keep_their_own_input_ids(make):
    first = [plain_text(p)[0] for p in PROMPTS]
    options = {"max_new_tokens": 12, "eos_token_id": NEVER}
    one = torch.tensor([first])
    expected = assert_like_library(PROMPTS, options | {"logits_processor": [make(one)]})
    assert expected != [plain_text(p) for p in PROMPTS]
    each = torch.tensor(first)[:, None]
    assert_like_library(
        PROMPTS,
        options | {"logits_processor": [make(each)]},
        of_row=lambda row: {"logits_processor": [make(each[row : row + 1])]},
    )
    # The batch's own, padding included, are the row's own without it.
    ids, _ = padded(PROMPTS)
    assert_like_library(
        PROMPTS,
        options | {"logits_processor": [make(ids)]},
        of_row=lambda row: {"logits_processor": [make(torch.tensor([PROMPTS[row]]))]},
    )


class StopsAt(StoppingCriteria):
    def __init__(self, length):
        self.length, self.asked = length, []

    def __call__(self, input_ids, scores, **options):
        self.asked.append(input_ids.shape[1])
        done = input_ids.shape[1] >= self.length
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool)


@pytest.mark.parametrize("length", [13, 14, 16])
def test_custom_stopping_criteria_are_called_after_each_token(length):
    theirs, own = StopsAt(length), StopsAt(length)
    expected = library(PROMPTS[0], max_new_tokens=12, stopping_criteria=[theirs])
    assert len(expected) == length - len(PROMPTS[0])
    drafter = scripted(PROMPTS[:1], [plain_text(PROMPTS[0])])
    assert ours(PROMPTS[:1], drafter, max_new_tokens=12, stopping_criteria=[own]) == [expected]
    assert own.asked == theirs.asked
    assert max(drafter.accepted) >= 2
    assert_like_library(PROMPTS, {"max_new_tokens": 12, "stopping_criteria": [StopsAt(length)]})


def test_length_and_time_limits_equal_transformers():
    criteria = StoppingCriteriaList([MaxLengthCriteria(19)])
    assert_like_library(PROMPTS[1:2], {"stopping_criteria": criteria})
    assert_like_library(PROMPTS[1:2], {"max_length": 21})
    assert_like_library(PROMPTS[1:2], {})  # the library's default length
    config = GenerationConfig(max_new_tokens=7, eos_token_id=NEVER, pad_token_id=0)
    assert_like_library(PROMPTS, {"generation_config": config, "eos_token_id": NEVER})
    longer = StoppingCriteriaList([MaxLengthCriteria(40)])  # takes the place of the library's
    assert len(assert_like_library(PROMPTS[1:2], {"stopping_criteria": longer})[0]) == 29
    ended = {"max_time": 0.0, "max_new_tokens": 12}
    assert len(ours(PROMPTS[:1], "none", **ended)[0]) == 1


class StopsAtFives(MaxLengthCriteria):
    def __call__(self, input_ids, scores, **options):
        return input_ids[:, -1] % 5 == 0


class StopsAtSevens(EosTokenCriteria):
    def __call__(self, input_ids, scores, **options):
        return input_ids[:, -1] % 7 == 0


@pytest.mark.parametrize("criterion", [StopsAtFives(99), StopsAtSevens([3])])
def test_subclasses_of_transformers_criteria_are_called(criterion):
    options = {"max_new_tokens": 12, "stopping_criteria": [criterion]}
    expected = [library(p, **options) for p in PROMPTS]
    assert max(map(len, expected)) < 12
    longest = max(map(len, expected))
    filled = [tokens + [0] * (longest - len(tokens)) for tokens in expected]
    for drafter in ("none", scripted(PROMPTS, [plain_text(p) for p in PROMPTS])):
        assert ours(PROMPTS, drafter, **options) == filled


def test_scores_and_logits_of_accepted_tokens_equal_transformers():
    options = {
        "max_new_tokens": 11, "repetition_penalty": 1.3, "output_scores": True, "output_logits": True,
        "return_dict_in_generate": True, "eos_token_id": NEVER, "pad_token_id": 0,
    }  # fmt: skip
    ids, mask = padded(PROMPTS)
    target = target_of()
    texts = [library(p, max_new_tokens=11, repetition_penalty=1.3) for p in PROMPTS]
    drafter = scripted(PROMPTS, texts)
    out = specdec.generate(target, ids, drafter, max_nodes=16, attention_mask=mask, **options)
    assert max(drafter.accepted) >= 2
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
        target,
        ids,
        scripted(PROMPTS, texts),
        attention_mask=mask,
        **options | {"eos_token_id": [end]},
    )
    assert not cut.scores[-1][0].any() and torch.equal(cut.scores[2][0], out.scores[2][0])


class Collects(BaseStreamer):
    def __init__(self):
        self.columns, self.ended = [], False

    def put(self, value):
        self.columns.append(value)

    def end(self):
        self.ended = True


def test_streamers_receive_each_token_once():
    target = target_of()
    for prompts in (PROMPTS[:1], PROMPTS):
        ids, mask = padded(prompts)
        streamer = Collects()
        end = plain_text(PROMPTS[0])[4]
        drafter = scripted(prompts, [plain_text(p) for p in prompts])
        out = specdec.generate(
            target, ids, drafter, streamer=streamer, attention_mask=mask, max_new_tokens=12,
            eos_token_id=[end], pad_token_id=0,
        )  # fmt: skip
        assert streamer.ended
        assert max(drafter.accepted) >= 2
        assert torch.equal(streamer.columns[0], ids)
        assert torch.equal(torch.stack(streamer.columns[1:], 1), out[:, ids.shape[1] :])
        # A column is not a view of all the text before it.
        assert all(c.untyped_storage().nbytes() == c.nbytes for c in streamer.columns[1:])
