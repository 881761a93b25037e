"""Training-free methods and their unions give transformers' tokens: families, ragged batches, greedy and sampled."""

import functools

import pytest
import torch

import every_drafter
from specdec.model.target import Target
from specdec.pickers import PathPicker
from specdec.sampling import Sampling
from specdec.session import Session
from tiny import FAMILIES, SEED, library_greedy, library_sampled, random_prompt, tiny_model

NEW = 20
METHODS = [
    every_drafter.lookup,
    every_drafter.suffix,
    every_drafter.rest,
    every_drafter.recycling,
    every_drafter.lookahead,
    every_drafter.small_model,
    every_drafter.training_free,
    every_drafter.all_training_free,
]
# Ragged, and with repeats that can be drafted.
PROMPTS = [random_prompt(5, 1) * 3, [7], random_prompt(9, 2) * 2, random_prompt(17, 3)]


@functools.cache
def library(family, row, how):
    model = tiny_model(family)
    if how == "greedy":
        return library_greedy(model, PROMPTS[row], NEW)
    return library_sampled(model, PROMPTS[row], NEW, row)


@pytest.mark.sampled
@pytest.mark.parametrize("how", ["greedy", "sampled"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("make", METHODS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_transformers(family, make, rows, how):
    target = Target(tiny_model(family))
    expected = [library(family, row, how) for row in range(rows)]
    picker = PathPicker(Sampling(SEED, torch.arange(rows))) if how == "sampled" else None
    session = Session(target, make(target), max_nodes=24)
    written = session.generate(PROMPTS[:rows], max_new_tokens=NEW, picker=picker)
    assert written.tokens == expected
    # Rows that end at their own times, in a session that has written before.
    end = expected[0][NEW // 2]
    cut = [text[: text.index(end) + 1] if end in text else text for text in expected]
    again = session.generate(PROMPTS[:rows], max_new_tokens=NEW, eos_token_ids=[end], picker=picker)
    assert again.tokens == cut


# A store of random text and another random model are right by chance alone.
@pytest.mark.parametrize(
    "make",
    [m for m in METHODS if m not in (every_drafter.rest, every_drafter.small_model)],
    ids=lambda make: make.__name__,
)
def test_every_method_has_accepted_tokens(make):
    target = Target(tiny_model("llama"))
    session = Session(target, make(target), max_nodes=24, guard=False)
    session.generate(PROMPTS[:1], max_new_tokens=60)  # what it wrote is known the second time
    assert session.generate(PROMPTS[:1], max_new_tokens=60).metrics.tokens_per_round > 1.02


@pytest.mark.parametrize("rows", [1, 3])
def test_exact_bfloat16_text_does_not_depend_on_the_method(rows):
    target = Target(tiny_model("llama", dtype=torch.bfloat16), exact=True)
    plain = Session(target, "plain").generate(PROMPTS[:rows], max_new_tokens=NEW)
    for make in METHODS:
        written = Session(target, make(target)).generate(PROMPTS[:rows], max_new_tokens=NEW)
        assert written.tokens == plain.tokens, make.__name__
