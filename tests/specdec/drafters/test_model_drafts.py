"""Drafts of a draft model: all accepted if it is the target, and no unnecessary passes."""

from itertools import islice

import pytest
import torch
from model_drafts import Watched, cut_model, drafter_of

from specdec import Session, load_target
from specdec.model.target import Target
from specdec.pickers import PathPicker
from specdec.sampling import Sampling
from tiny import (
    FAMILIES,
    SEED,
    library_greedy,
    random_prompt,
    tiny_model,
)

NEW = 20
SHAPES = pytest.mark.parametrize("width", [1, 3], ids=["chain", "beams"])


@pytest.mark.parametrize("family", FAMILIES)
def test_target_accepts_all_drafts_of_itself(family):
    target = Target(tiny_model(family))
    watched = Watched(drafter_of(target, target, length=4))
    prompts = [random_prompt(length, length) for length in (5, 19, 1)]
    Session(target, watched, max_nodes=16).generate(prompts, max_new_tokens=NEW)
    for _, proposals, tree, accepted, _ in watched.rounds:
        assert torch.equal(accepted.lengths, tree.sizes - 1)
        assert proposals.valid.all()
    assert len(watched.rounds) == 4  # one token of prefill, three rounds of five, what is left


@pytest.mark.parametrize("family", FAMILIES)
def test_beam_scores_equal_the_models_log_probabilities(family):
    target = Target(tiny_model(family))
    watched = Watched(drafter_of(target, target, length=3, width=4))
    prompts = [random_prompt(length, length) for length in (5, 19, 1)]
    Session(target, watched, max_nodes=13).generate(prompts, max_new_tokens=NEW)
    deep = 0
    for _, _, tree, accepted, verified in watched.rounds:
        assert (accepted.lengths[tree.sizes > 1] >= 1).all()  # the likeliest token is there
        log_probs = verified.logits.log_softmax(-1)
        for row, size in enumerate(tree.sizes.tolist()):
            for node in range(1, size):
                parent = int(tree.parents[row, node])
                said = log_probs[row, parent, tree.tokens[row, node]] + tree.scores[row, parent]
                assert float(said) == pytest.approx(float(tree.scores[row, node]), abs=1e-4)
                deep += int(tree.depth[row, node]) > 1
    assert deep > 20


def test_coupled_drafts_of_the_same_model_are_all_accepted():
    target = Target(tiny_model("llama", seed=3))
    prompts = [random_prompt(length, length) for length in (5, 9)]
    session = Session(target, drafter_of(target, target), max_nodes=16)
    walk = PathPicker(Sampling(SEED, torch.arange(2), temperature=0.8))
    metrics = session.generate(prompts, max_new_tokens=40, picker=walk).metrics
    assert metrics.tokens_per_round > 5


@SHAPES
def test_draft_takes_one_pass_per_step_and_stops_at_low_probability(width):
    target, passes = Target(tiny_model("llama")), []
    small = Target(tiny_model.__wrapped__("llama", seed=1))
    small.model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    counted = {}
    for least in (0, 0.2, 0.99):
        watched = Watched(drafter_of(target, small, length=4, width=width, min_step_prob=least))
        session = Session(target, watched, max_nodes=16)
        passes.clear()
        session.generate([random_prompt(5, 1)], max_new_tokens=NEW)
        steps = [min(4, depth) for (depth,), *_ in watched.rounds]
        counted[least] = len(passes) - 1  # the prompt is one
        if not least:
            assert counted[0] == sum(steps)
    assert len(steps) - 1 <= counted[0.99] < counted[0.2] < counted[0]


@SHAPES
def test_continued_session_drafts_the_same_as_a_fresh_one(width):
    target, small = Target(tiny_model("llama")), Target(tiny_model("gpt2", seed=1))
    start = [random_prompt(length, 7) for length in (30, 22)]
    parts = [text[:17] + random_prompt(9, 8) for text in start]
    read = []

    def drafts(session, prompts):
        session.drafter.rounds.clear()
        session.generate(prompts, max_new_tokens=12)
        return [
            (proposals.tokens.tolist(), proposals.valid.tolist())
            for _, proposals, *_ in session.drafter.rounds
        ]

    def new_session():
        return Session(target, Watched(drafter_of(target, small, width=width)), max_nodes=16)

    session = new_session()
    drafts(session, start)
    prefill = small.prefill
    small.prefill = lambda ids, *rest, **more: read.append(ids.shape[1]) or prefill(ids, *rest, **more)  # fmt: skip
    assert drafts(session, parts) == drafts(new_session(), parts)
    assert read == [26 - 17, 26]
    # A longer text, in a cache that has to grow; then other rows.
    longer = [text + random_prompt(60, 3) for text in parts]
    assert drafts(session, longer) == drafts(new_session(), longer)
    assert drafts(session, longer[:1]) == drafts(new_session(), longer[:1])


@SHAPES
def test_nothing_is_drafted_beyond_the_draft_models_positions(width):
    model = tiny_model("llama")
    target = Target(model)
    small = tiny_model.__wrapped__("gpt2", seed=1)
    small.config.max_position_embeddings = 32
    small = Target(small)
    assert small.position_limit == 32
    # One is longer from the start, one becomes so, one stays shorter.
    prompts = [random_prompt(length, length) for length in (40, 24, 3)]
    watched = Watched(drafter_of(target, small, length=4, width=width))
    written = Session(target, watched, max_nodes=16).generate(prompts, max_new_tokens=NEW)
    assert written.tokens == [library_greedy(model, p, NEW) for p in prompts]
    assert any(proposals.valid.any() for _, proposals, *_ in watched.rounds)
    for rows, proposals, *_ in watched.rounds:
        if proposals.tokens.shape[1] and len(rows) == 3:
            assert not proposals.valid[0].any()
    alone = Watched(watched.inner)
    session = Session(target, alone)
    session.generate(prompts[:1], max_new_tokens=5)
    assert not any(proposals.tokens.shape[1] for _, proposals, *_ in alone.rounds)
    session.generate(prompts[1:2], max_new_tokens=5)
    assert any(proposals.valid.any() for _, proposals, *_ in alone.rounds)


def test_two_sessions_can_share_a_drafter():
    model = tiny_model("llama")
    target = Target(model)
    drafter = drafter_of(target, Target(cut_model(model, 2)))
    prompts = [random_prompt(length, length) for length in (5, 12)]
    streams = [
        Session(target, drafter, max_nodes=8).stream([prompt], max_new_tokens=NEW)
        for prompt in prompts
    ]
    written = [[], []]
    for _ in range(NEW):
        for text, stream in zip(written, streams, strict=True):
            for (emitted,) in [*islice(stream, 1)]:
                text += emitted.tokens
    assert written == [library_greedy(model, prompt, NEW) for prompt in prompts]


def test_changed_draft_model_weights_discard_its_cache():
    target = Target(tiny_model("llama"))
    model = tiny_model.__wrapped__("llama")
    drafter = drafter_of(target, load_target(model))
    session, prompt = Session(target, drafter), [random_prompt(9, 1)]
    assert session.generate(prompt, max_new_tokens=NEW).metrics.tokens_per_round > 4
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(-3)
    fresh = Session(target, drafter_of(target, Target(model)))
    gains = [s.generate(prompt, max_new_tokens=NEW).metrics.gains for s in (session, fresh)]
    assert gains[0] == gains[1]
