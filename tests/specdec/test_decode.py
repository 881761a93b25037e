"""Losslessness: with any draft, tokens equal transformers' greedy tokens."""

import pytest
import torch

from scripted import ScriptedDrafter
from specdec.drafters import LookupConfig, LookupDrafter, MixedDrafter, PlainDrafter
from specdec.model.target import Target
from specdec.session import Session
from tiny import FAMILIES, POSITIONS, VOCABULARY, library_greedy, random_prompt, tiny_model

NEW = 24


def scripted(texts, right, seed=0, nodes=64):
    return ScriptedDrafter(
        texts, right=right, seed=seed, most_proposals=nodes, vocabulary=VOCABULARY
    )


@pytest.mark.sampled
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_transformers_with_any_drafter_and_batch(family, seed):
    model = tiny_model(family, seed)
    target = Target(model)
    # Ragged: one token, some, and more than a window.
    lengths = (1, 5, 19, 11)[: seed + 1]
    prompts = [random_prompt(length, 10 * seed + length) for length in lengths]
    expected = [library_greedy(model, prompt, NEW) for prompt in prompts]
    texts = [p + e for p, e in zip(prompts, expected, strict=True)]
    drafters = {
        "plain": PlainDrafter(),
        "lookup": LookupDrafter(LookupConfig(min_prob=0.01)),
        "garbage": scripted(texts, 0.0, seed),
        "half right": scripted(texts, 0.5, seed),
        "right": scripted(texts, 1.0, seed),
        "all": MixedDrafter([scripted(texts, 0.3, seed), LookupDrafter(), scripted(texts, 0.9, seed)]),
    }  # fmt: skip
    for name, drafter in drafters.items():
        for max_nodes in (1, 7, 64):
            session = Session(target, drafter, max_nodes=max_nodes)
            written = session.generate(prompts, max_new_tokens=NEW)
            assert written.tokens == expected, (name, max_nodes)


def test_scripted_drafters_cover_every_tree_size_and_acceptance_rate():
    model = tiny_model("llama")
    prompts = [random_prompt(8, 1), random_prompt(5, 2)]
    texts = [p + library_greedy(model, p, 100) for p in prompts]
    rates = {}
    sizes = set()
    for right in (0.0, 0.5, 1.0):
        drafter = scripted(texts, right)
        generation = Session(Target(model), drafter, max_nodes=64).generate(
            prompts, max_new_tokens=100
        )
        rates[right] = generation.metrics.tokens_per_round
        sizes |= set(drafter.sizes)
    assert min(sizes) == 1
    assert max(sizes) > 48
    assert rates[0.0] < 1.5 < rates[0.5] < rates[1.0]
    assert rates[1.0] > 4


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_eos_inside_an_accepted_path_ends_the_text(right):
    model = tiny_model("llama", seed=1)
    prompt = random_prompt(7, 3)
    full = library_greedy(model, prompt, NEW)
    target = Target(model)
    for place in range(NEW):
        eos = [full[place]]  # as first token, in the middle of a path, as last allowed token
        expected = library_greedy(model, prompt, NEW, eos)
        session = Session(target, scripted([prompt + full], right), max_nodes=16)
        written = session.generate([prompt], max_new_tokens=NEW, eos_token_ids=eos)
        assert written.tokens == [expected]
        assert expected[-1] == eos[0]


def test_rows_that_end_early_do_not_affect_other_rows():
    model = tiny_model("qwen3", seed=2)
    prompts = [random_prompt(length, length) for length in (3, 12, 6, 9)]
    full = [library_greedy(model, p, NEW) for p in prompts]
    eos = [full[0][0], full[2][5]]
    expected = [library_greedy(model, p, NEW, eos) for p in prompts]
    assert len({len(e) for e in expected}) > 1
    texts = [p + f for p, f in zip(prompts, full, strict=True)]
    for right in (0.0, 0.6, 1.0):
        session = Session(Target(model), scripted(texts, right), max_nodes=12)
        written = session.generate(prompts, max_new_tokens=NEW, eos_token_ids=eos)
        assert written.tokens == expected


@pytest.mark.parametrize("limit", [1, 2, 3, 17])
def test_output_has_exactly_max_new_tokens(limit):
    model = tiny_model("llama", seed=3)
    prompts = [random_prompt(1, 5), random_prompt(30, 6)]
    expected = [library_greedy(model, p, limit) for p in prompts]
    texts = [p + library_greedy(model, p, limit + 20) for p in prompts]
    for drafter in (PlainDrafter(), scripted(texts, 1.0)):
        written = Session(Target(model), drafter, max_nodes=16).generate(
            prompts, max_new_tokens=limit
        )
        assert written.tokens == expected


def test_text_ends_at_the_models_last_position():
    model = tiny_model("llama", seed=4)
    prompts = [random_prompt(POSITIONS - 1, 7), random_prompt(POSITIONS - 9, 8)]
    expected = [library_greedy(model, p, POSITIONS - len(p)) for p in prompts]
    texts = [p + library_greedy(model, p, 40) for p in prompts]
    drafter = scripted(texts, 1.0)
    written = Session(Target(model), drafter, max_nodes=16).generate(prompts, max_new_tokens=40)
    assert written.tokens == expected
    assert list(map(len, written.tokens)) == [1, 9]


def test_metrics_equal_the_emitted_rounds():
    model = tiny_model("llama", seed=5)
    prompt = random_prompt(6, 9)
    text = prompt + library_greedy(model, prompt, 60)
    session = Session(Target(model), scripted([text], 0.7), max_nodes=16)
    emitted = list(session.stream([prompt], max_new_tokens=40))
    metrics = session.generate([prompt], max_new_tokens=40).metrics
    assert emitted[0][0].nodes == 0
    assert sum(len(e.tokens) for (e,) in emitted) == 40
    assert [e.finished for (e,) in emitted] == [False] * (len(emitted) - 1) + [True]
    assert metrics.new_tokens == 40
    assert sum(metrics.gains) == 39  # prefill gave the first
    deepest = max(metrics.gains)
    total = 1 + sum(metrics.ctar(width) for width in range(1, deepest))
    assert metrics.tokens_per_round == pytest.approx(total)
    assert 1 < metrics.nodes_per_round <= 16
    assert 0 < metrics.share_removed < 1
    assert set(metrics.seconds) == {
        "prefill", "draft", "pack", "verify", "pick", "accept", "commit", "observe", "emit"
    }  # fmt: skip


def test_equal_logits_pick_the_lowest_id():
    from specdec.sampling import most_likely

    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    for dtype in (torch.float32, torch.bfloat16):
        assert most_likely(logits.to(dtype)).tolist() == [1, 0]
