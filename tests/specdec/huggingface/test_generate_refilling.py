"""`specdec.generate` with fewer rows at once than it is given: the result is that of all at once."""

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

import specdec
from every_drafter import kangaroo, lookup
from generate_rows import NEVER, PROMPTS, library, ours, padded, plain_text, target_of
from specdec.model.cache import CACHE_NAME
from tiny import SEED, random_prompt

MORE = [*PROMPTS, random_prompt(6, 31), random_prompt(2, 32) * 3]
ENDS = [plain_text(MORE[0])[3], plain_text(MORE[3])[0]]


@pytest.mark.parametrize("make", [lookup, kangaroo])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eos_token_id": ENDS},
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2, "eos_token_id": ENDS},
        {"do_sample": True, "seed": SEED, "streams": [4, 9, 1, 1, 0]},
        {"do_sample": True, "seed": SEED, "top_k": 5, "min_p": 0.05, "eos_token_id": ENDS},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_result_does_not_depend_on_rows_at_once(make, options):
    drafter, options = make(target_of()), {"max_new_tokens": 9} | options
    expected = ours(MORE, drafter, **options)
    for rows in (1, 2, 3, 5, 50):
        assert ours(MORE, drafter, rows_at_once=rows, **options) == expected
    if "do_sample" not in options:
        alone = [library(prompt, **options) for prompt in MORE]
        assert [text[: len(one)] for text, one in zip(expected, alone, strict=True)] == alone


def test_scores_logits_and_streaming_do_not_depend_on_rows_at_once():
    class Columns(BaseStreamer):
        def __init__(self):
            self.got = []

        def put(self, value):
            self.got.append(value)

        def end(self):
            self.got.append(None)

    ids, mask = padded(MORE)
    options = {
        "max_new_tokens": 8, "output_scores": True, "output_logits": True, "return_dict_in_generate": True,
        "eos_token_id": ENDS, "pad_token_id": 0, "repetition_penalty": 1.2,
    }  # fmt: skip
    results, streamers = [], []
    for rows in (None, 2):
        streamers.append(Columns())
        how = {"attention_mask": mask, "streamer": streamers[-1], "rows_at_once": rows}
        results.append(specdec.generate(target_of(), ids, "lookup", **how, **options))
    one, other = results
    assert torch.equal(one.sequences, other.sequences)
    for name in ("scores", "logits"):
        torch.testing.assert_close(getattr(other, name), getattr(one, name))
    assert [x if x is None else x.tolist() for x in streamers[1].got] == [
        x if x is None else x.tolist() for x in streamers[0].got
    ]
    assert one[CACHE_NAME] is not None
    assert getattr(other, CACHE_NAME) is None


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_num_return_sequences_may_exceed_rows_at_once(rows):
    ids, mask = padded(MORE)
    options = {
        "attention_mask": mask, "max_new_tokens": 7, "num_return_sequences": 3, "do_sample": True, "seed": SEED,
        "eos_token_id": ENDS, "pad_token_id": 0,
    }  # fmt: skip
    expected = specdec.generate(target_of(), ids, "lookup", **options)
    found = specdec.generate(target_of(), ids, "lookup", rows_at_once=rows, **options)
    assert torch.equal(found, expected)


def test_stopping_criteria_are_called_per_row():
    text = plain_text(MORE[3])

    def stop(ids, scores, **options):
        return torch.tensor([ids[0, -1].item() == text[2]])

    expected = ours(MORE, "plain", max_new_tokens=9, stopping_criteria=[stop])
    assert expected != ours(MORE, "plain", max_new_tokens=9)
    for rows in (1, 3):
        found = ours(MORE, "plain", max_new_tokens=9, stopping_criteria=[stop], rows_at_once=rows)
        assert found == expected


def test_custom_generate_method_accepts_rows_at_once():
    ids, mask = padded(MORE)
    options = {
        "attention_mask": mask,
        "max_new_tokens": 7,
        "eos_token_id": NEVER,
        "pad_token_id": 0,
    }
    target = target_of()
    out = target.model.generate(
        ids, custom_generate=specdec.method, target=target, drafter="lookup", rows_at_once=2, **options
    )  # fmt: skip
    assert out[:, ids.shape[1] :].tolist() == ours(MORE, "lookup", max_new_tokens=7)


def test_cache_of_all_rows_cannot_be_continued_with_fewer_rows():
    ids, mask = padded(MORE)
    options = {"attention_mask": mask, "max_new_tokens": 3, "return_dict_in_generate": True}
    past = specdec.generate(target_of(), ids, "lookup", **options)[CACHE_NAME]
    with pytest.raises(ValueError, match="rows_at_once: expected None or at least 5, .* got 4"):
        specdec.generate(
            target_of(), ids, "lookup", rows_at_once=4, **{CACHE_NAME: past}, **options
        )
    again = specdec.generate(
        target_of(), ids, "lookup", rows_at_once=5, **{CACHE_NAME: past}, **options
    )
    assert getattr(again, CACHE_NAME) is past


@pytest.mark.parametrize("rows", [0, -3])
def test_error_names_rows_at_once_below_1(rows):
    with pytest.raises(ValueError, match=f"rows_at_once: expected at least 1, got {rows}"):
        specdec.generate(target_of(), [[3, 4]], "plain", max_new_tokens=2, rows_at_once=rows)
