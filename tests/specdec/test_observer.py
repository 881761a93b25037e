"""What a listener is told of each round."""

import pytest

from every_drafter import DRAFTERS
from specdec.drafters import LookupDrafter
from specdec.huggingface.generate import generate
from specdec.metrics import Metrics
from specdec.model.target import Target
from specdec.observer import Round
from specdec.session import Session
from tiny import random_prompt, tiny_model

PROMPTS = [random_prompt(9, 0) * 2, random_prompt(5, 1)]
NEW = 12
STAGES = {"draft", "pack", "verify", "pick", "accept", "commit", "observe", "emit"}


@pytest.mark.parametrize("make", DRAFTERS, ids=lambda make: make.__name__)
def test_on_round_receives_each_round_and_does_not_change_the_text(make):
    target = Target(tiny_model("llama"))
    drafter = make(target)
    expected = Session(target, drafter).generate(PROMPTS, max_new_tokens=NEW)
    rounds: list[Round] = []
    told = Session(target, drafter).generate(PROMPTS, max_new_tokens=NEW, on_round=rounds.append)
    assert told.tokens == expected.tokens

    texts: list[list[int]] = [[], []]
    first, *others = rounds
    assert first.trees() == [] and first.tree is None
    for each in rounds:
        for e in each.emitted:
            texts[e.row] += e.tokens
    assert texts == told.tokens
    written = [list(prompt) for prompt in PROMPTS]
    for each in rounds:
        for tree, e in zip(each.trees(), each.emitted, strict=bool(each.trees())):
            assert tree.row == e.row and len(tree.tokens) == e.nodes
            assert tree.tokens[0] == written[e.row][-1], "a root is the last token of its text"
            assert tree.path[0] == 0 and tree.parents[0] == tree.sources[0] == -1
            for parent, node in zip(tree.path, tree.path[1:], strict=False):
                assert tree.parents[node] == parent
                assert tree.picked[parent] == tree.tokens[node]
            new = [tree.tokens[node] for node in tree.path[1:]] + [tree.picked[tree.path[-1]]]
            assert new[: len(e.tokens)] == e.tokens
        for e in each.emitted:
            written[e.row] += e.tokens
    assert set(first.seconds) == {"prefill", "draft"}
    assert all(set(each.seconds) == STAGES for each in others)


def test_round_seconds_add_up_to_the_metrics():
    target, metrics, rounds = Target(tiny_model("llama")), Metrics(), []
    session = Session(target, LookupDrafter())
    options = {"max_new_tokens": NEW, "metrics": metrics}
    session.generate(PROMPTS, **options)
    before = dict(metrics.seconds)
    session.generate(PROMPTS, **options, on_round=rounds.append)
    for stage, seconds in metrics.seconds.items():
        spent = sum(each.seconds.get(stage, 0.0) for each in rounds)
        assert spent == pytest.approx(seconds - before[stage])


def test_generate_calls_on_round():
    rounds: list[Round] = []
    model = tiny_model("llama")
    out = generate(model, [PROMPTS[0]], "lookup", max_new_tokens=NEW, on_round=rounds.append)
    new = [token for each in rounds for e in each.emitted for token in e.tokens]
    assert out[0, len(PROMPTS[0]) :].tolist() == new
