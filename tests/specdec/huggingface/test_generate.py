"""`specdec.generate` beside the library's own `generate`, one unpadded row at a time."""

import pytest
import torch
from transformers import (
    GenerationConfig,
    MaxLengthCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

import specdec
from generate_rows import (
    NEVER,
    PROMPTS,
    assert_like_library,
    library,
    ours,
    padded,
    plain_text,
    scripted,
    target_of,
)


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
    assert len(ours(PROMPTS[:1], "plain", **ended)[0]) == 1


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
