"""Rows of a batch are filled from waiting prompts as they end: each text is as if it were alone."""

import functools

import pytest
import torch

import every_drafter
from specdec.model.target import Target
from specdec.pickers import PathPicker
from specdec.sampling import Sampling
from specdec.session import Session
from tiny import (
    POSITIONS,
    SEED,
    library_greedy,
    library_sampled,
    random_prompt,
    tiny_model,
)

NEW = 20
# Ragged, one with repeats, one that ends where the model's positions do.
LENGTHS = (5, 1, POSITIONS - 6, 12, 3, 17, 8)
PROMPTS = [random_prompt(length, 40 + length) for length in LENGTHS[:-1]] + [
    random_prompt(4, 3) * 2
]
DRAFTERS = [*every_drafter.DRAFTERS, every_drafter.suffix, every_drafter.lookahead, every_drafter.recycling,
            every_drafter.rest, every_drafter.small_model]  # fmt: skip


@functools.cache
def alone(family, row, how="greedy"):
    model, prompt = tiny_model(family), PROMPTS[row]
    new = min(NEW, POSITIONS - len(prompt))
    if how == "greedy":
        return library_greedy(model, prompt, new)
    return library_sampled(model, prompt, new, row)


def texts_alone(family, ends=(), how="greedy"):
    """The library's own texts, each up to its first end token."""
    cut = []
    for row in range(len(PROMPTS)):
        text = alone(family, row, how)
        at = next((at for at, token in enumerate(text) if token in ends), len(text) - 1)
        cut.append(text[: at + 1])
    return cut


def ends_of(family, how="greedy"):
    """End tokens by which texts end at many places, one at least with its first token."""
    texts = texts_alone(family, how=how)
    return {texts[4][0], texts[0][12]}


def picker_of(how):
    return PathPicker(Sampling(SEED, torch.arange(len(PROMPTS)))) if how == "sampled" else None


@pytest.mark.parametrize("how", ["greedy", "sampled"])
@pytest.mark.parametrize("make", DRAFTERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_each_text_is_as_if_alone(family, make, how):
    target = Target(tiny_model(family))
    ends, drafter = ends_of(family, how), make(target)
    expected = texts_alone(family, ends, how)
    assert len(set(map(len, expected))) > 3 and min(map(len, expected)) == 1, expected
    for rows in (1, 2, 3, 7):
        session = Session(target, drafter, max_nodes=8)
        for _ in range(2):  # what was kept of the first time is of no harm
            written = session.generate(
                PROMPTS, max_new_tokens=NEW, eos_token_ids=ends, picker=picker_of(how), rows_at_once=rows
            )  # fmt: skip
            assert written.tokens == expected, rows
