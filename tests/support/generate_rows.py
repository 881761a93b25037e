"""Runs a ragged batch through `specdec.generate`, and each row through transformers' `generate`."""

import functools

import torch

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
    for drafter in ("plain", LookupDrafter(), redrafter(target_of()), *knowing):
        assert ours(prompts, drafter, side, **options) == filled
    # Several tokens were kept at once: each of them was picked along its own path.
    assert all(max(drafter.accepted) >= 2 for drafter in knowing)
    return expected


def plain_text(prompt, count=12):
    return library(prompt, max_new_tokens=count)
