"""Processors and stopping criteria of the caller's in `specdec.generate`: asked as the library asks them."""

import pytest
import torch
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    EosTokenCriteria,
    LogitsProcessor,
    MaxLengthCriteria,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
)

from generate_rows import (
    NEVER,
    PROMPTS,
    assert_like_library,
    library,
    ours,
    padded,
    plain_text,
    scripted,
)
from tiny import VOCABULARY


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


def test_prefix_allowed_tokens_fn_receives_the_row_index():
    def allowed(row, ids):
        return [3 + row, 10 + row, (int(ids[-1]) * 7 + row) % VOCABULARY]

    options = {"max_new_tokens": 10}
    assert_like_library(PROMPTS[:1], options | {"prefix_allowed_tokens_fn": allowed})
    expected = [
        library(p, **options, prefix_allowed_tokens_fn=lambda _, ids, row=row: allowed(row, ids))
        for row, p in enumerate(PROMPTS)
    ]
    for drafter in ("plain", scripted(PROMPTS, expected)):
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
    for drafter in ("plain", scripted(PROMPTS[:1], [text])):
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
        ours(PROMPTS, "plain", max_new_tokens=4, **options)


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
    for drafter in ("plain", scripted(PROMPTS, [plain_text(p) for p in PROMPTS])):
        assert ours(PROMPTS, drafter, **options) == filled
