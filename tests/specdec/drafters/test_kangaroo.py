"""Kangaroo: the target's text whatever is drafted, no layer run twice."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kangaroo_drafts import Recorder, follows_the_rule
from specdec.drafters import MixedDrafter, PlainDrafter
from specdec.drafters.kangaroo import KangarooConfig, KangarooDrafter
from specdec.load import load_target
from specdec.model.cpu_linear import PrepackedLinear, can_prepack
from specdec.model.target import Target
from specdec.session import Session
from tiny import FAMILIES, SHAPE, VOCABULARY, library_greedy, random_prompt, tiny_model

NEW = 20


LEAN = torch.arange(0, VOCABULARY, 3)


def kangaroo(target, *, exit_layer=1, vocabulary=None, seed=0, **options):
    """A drafter with a random adapter."""
    options = {"heads": 4, "kv_heads": 2, "head_dim": 6} | options
    config = KangarooConfig(target.config.hidden_size, exit_layer=exit_layer, **options)
    with torch.inference_mode(False):
        torch.manual_seed(seed)
        adapter = config.new_adapter().requires_grad_(False)
        for projection in (adapter.q_proj, adapter.k_proj, adapter.v_proj, adapter.o_proj):
            projection.weight.mul_(4)
    return KangarooDrafter(target, config, adapter, vocabulary)


@pytest.mark.sampled
@pytest.mark.parametrize("exit_layer", [1, 2])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_transformers(family, eta, exit_layer):
    model = tiny_model(family, seed=exit_layer)
    target = Target(model)
    lengths = (1, 19, 5, 11)  # ragged; one is longer than a window
    every = [random_prompt(length, 10 * exit_layer + length) for length in lengths]
    expected = [library_greedy(model, prompt, NEW) for prompt in every]
    for at, (gamma, max_nodes) in enumerate(((1, 16), (3, 16), (8, 16), (8, 2), (3, 1))):
        drafter = kangaroo(
            target,
            exit_layer=exit_layer,
            eta=eta,
            gamma=gamma,
            vocabulary=LEAN if at % 2 else None,
            seed=at,
        )
        for batch in (1, 4) if gamma == 3 else (2 + at % 2,):
            session = Session(target, drafter, max_nodes=max_nodes)
            written = session.generate(every[:batch], max_new_tokens=NEW)
            assert written.tokens == expected[:batch], (gamma, max_nodes, batch)


def test_every_row_stops_drafting_at_its_first_token_below_eta(monkeypatch):
    target = Target(tiny_model("llama", seed=3))
    prompts = [random_prompt(length, length) for length in (4, 9, 14)]
    drafter = kangaroo(target, eta=0.3, gamma=5)
    recorder = Recorder(drafter, monkeypatch)
    session = Session(target, drafter, max_nodes=16)
    remaining, most = [30] * 3, []
    for emitted in session.stream(prompts, max_new_tokens=30):
        for e in emitted:
            remaining[e.row] -= len(e.tokens)
        most.append([min(5, left - 1) for left in remaining if left])
    lengths = set()
    for confidences, mosts in zip(recorder.confidences, most, strict=False):
        for row, longest in zip(confidences, mosts, strict=True):
            lengths.add(len(row))
            assert longest == 0 == len(row) or follows_the_rule(row, 0.3, longest)
    assert {1, 2, 3} <= lengths  # rows did stop at different steps


def test_only_draft_vocabulary_tokens_are_drafted(monkeypatch):
    target = Target(tiny_model("granite", seed=3))
    drafter = kangaroo(target, eta=0.0, gamma=4, vocabulary=LEAN)
    recorder = Recorder(drafter, monkeypatch)
    Session(target, drafter).generate([random_prompt(8, 1)], max_new_tokens=NEW)
    drafted = {token for rows in recorder.tokens for row in rows for token in row}
    assert drafted <= set(LEAN.tolist())
    # Confidence is a share of the draft vocabulary's probability: what the whole head says, cut to its rows.
    y = torch.randn(3, target.config.hidden_size, dtype=torch.float64)
    cut = target.logits(y).float()[:, LEAN].softmax(-1).max(-1)
    sure = drafter.head.confidence(y)
    torch.testing.assert_close(sure.confidence, cut.values, rtol=1e-5, atol=1e-6)
    assert torch.equal(sure.tokens, LEAN[cut.indices])


def agreeing(exit_layer=2, deep=0.0, seed=0, **settings):
    """A model whose layers behind the exit add little, and an adapter that adds nothing: they say the same."""
    torch.manual_seed(seed)
    shape = SHAPE | {"num_hidden_layers": 6} | settings
    model = LlamaForCausalLM(LlamaConfig(**shape)).double().eval()
    model.requires_grad_(False)
    for layer in model.model.layers[exit_layer:]:
        layer.self_attn.o_proj.weight.mul_(deep)
        layer.mlp.down_proj.weight.mul_(deep)
    config = KangarooConfig(48, 4, 2, 6, exit_layer=exit_layer, eta=0.0, gamma=5)
    adapter = config.new_adapter().requires_grad_(False)
    adapter.o_proj.weight.zero_()
    return model, KangarooDrafter(Target(model), config, adapter)


@pytest.mark.parametrize("batch", [1, 3])
def test_perfect_adapter_has_every_draft_accepted(batch):
    model, drafter = agreeing()
    prompts = [random_prompt(5 + row, row) for row in range(batch)]
    written = Session(drafter.target, drafter, max_nodes=16).generate(prompts, max_new_tokens=25)
    assert written.tokens == [library_greedy(model, p, 25) for p in prompts]
    assert written.metrics.gains == [6] * 4 * batch
    assert written.metrics.nodes_per_round == 6


@pytest.mark.parametrize("seed", range(4))
def test_tokens_equal_transformers_with_partly_accepted_drafts(seed):
    model, drafter = agreeing(deep=0.25, seed=seed)
    prompts = [random_prompt(5 + 4 * row, row) for row in range(4)]
    full = [library_greedy(model, p, 40) for p in prompts]
    eos = [full[0][7], full[2][0]]
    written = Session(drafter.target, drafter).generate(
        prompts, max_new_tokens=40, eos_token_ids=eos
    )
    assert written.tokens == [library_greedy(model, p, 40, eos) for p in prompts]
    assert 1.3 < written.metrics.tokens_per_round < 6
    assert len(set(written.metrics.gains)) > 2


def test_no_layer_runs_twice_for_a_token():
    model, drafter = agreeing(deep=0.25)
    target = drafter.target
    drafter = kangaroo(target, exit_layer=2, eta=0.5)
    widths = [[] for _ in model.model.layers]
    for width, layer in zip(widths, model.model.layers, strict=True):
        layer.register_forward_hook(
            lambda module, args, out, width=width: width.append(args[0].shape[1])
        )
    prompt = random_prompt(9, 2)
    stream = Session(target, drafter).stream([prompt], max_new_tokens=30)
    next(stream)
    assert widths == [[9]] * 6  # the adapter read along
    rounds = [emitted for (emitted,) in stream]
    nodes = [emitted.nodes for emitted in rounds]
    assert len(set(nodes)) > 2
    drafted = [n for n in nodes if n > 1]
    alone = [1] * (len(nodes) - len(drafted))
    for layer in (0, 1):
        assert widths[layer] == [9] + [1] * sum(drafted) + alone
    for layer in (2, 3, 4, 5):
        assert widths[layer] == [9, *drafted, *alone]


def test_head_runs_once_per_drafted_token_and_once_to_verify():
    _, drafter = agreeing()
    shapes = []
    drafter.head.linear.register_forward_hook(
        lambda module, args, out: shapes.append(tuple(args[0].shape[:-1]))
    )
    stream = Session(drafter.target, drafter).stream([random_prompt(4, 1)], max_new_tokens=7)
    next(stream)
    shapes.clear()
    next(stream)
    assert shapes == [(1,)] * 5 + [(1, 6)]


def test_continued_session_drafts_the_same_as_a_fresh_one(monkeypatch):
    model, drafter = agreeing(deep=0.25)
    monkeypatch.setattr("specdec.model.target.PREFILL_CHUNK", 8)
    drafter = kangaroo(drafter.target, exit_layer=2, eta=0.2)
    recorder = Recorder(drafter, monkeypatch)
    session = Session(drafter.target, drafter)
    first = random_prompt(20, 4)
    eos = library_greedy(model, first, 12)[8]
    text = first + session.generate([first], max_new_tokens=30, eos_token_ids=[eos]).tokens[0]
    for seed in (5, 6):
        text = text + random_prompt(5, seed)
        before = len(recorder.drafts)
        continued = session.generate([text], max_new_tokens=12, eos_token_ids=[eos]).tokens
        between = len(recorder.drafts)
        fresh = Session(drafter.target, drafter)
        assert fresh.generate([text], max_new_tokens=12, eos_token_ids=[eos]).tokens == continued
        assert continued == [library_greedy(model, text, 12, [eos])]
        drafts = recorder.drafts[before:between], recorder.drafts[between:]
        for ours, theirs in zip(*drafts, strict=True):
            assert torch.equal(ours.tokens, theirs.tokens)
            torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-5, atol=1e-5)
        text = text[:-9]  # goes back into what is cached
    other = [random_prompt(6, 7), random_prompt(3, 8)]
    expected = [library_greedy(model, p, 9) for p in other]
    assert session.generate(other, max_new_tokens=9).tokens == expected


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_padding_steps_never_exceed_the_position_limit(kind):
    rope = {"rope_type": kind, "rope_theta": 100.0, "factor": 4.0}
    settings = {"rope_parameters": rope, "max_position_embeddings": 32}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [9.0] * 4}
        rope["original_max_position_embeddings"] = 32
        settings["max_position_embeddings"] = 128
    model, drafter = agreeing(**settings)
    assert drafter.target.position_limit == 32
    # The first row has room for one token behind its root, the other drafts on: one step too far would turn its
    # queries and keys by other angles than the library does.
    prompts = [random_prompt(29, 1), random_prompt(12, 2)]
    expected = [library_greedy(model, p, 32 - len(p)) for p in prompts]
    seen = []
    model.model.rotary_emb.register_forward_pre_hook(
        lambda module, args: seen.append(int(args[1].max()))
    )
    written = Session(drafter.target, drafter).generate(prompts, max_new_tokens=40)
    assert max(seen) == 31
    assert written.tokens == expected
    assert max(written.metrics.gains) == 6


@pytest.mark.parametrize("batch", [1, 3])
def test_exact_bfloat16_tokens_equal_the_plain_loop(batch):
    try:
        target = load_target(tiny_model("llama", dtype=torch.bfloat16), exact=True)
    except ValueError as error:
        if not str(error).startswith("exact:"):
            raise
        pytest.skip(f"this machine cannot: {error}")
    prompts = [random_prompt(length, length) for length in (12, 1, 6)][:batch]
    plain = Session(target, PlainDrafter()).generate(prompts, max_new_tokens=NEW).tokens
    for gamma in (1, 4):
        for max_nodes in (1, 2, 16):
            drafter = kangaroo(target, eta=0.2, gamma=gamma)
            session = Session(target, drafter, max_nodes=max_nodes)
            assert session.generate(prompts, max_new_tokens=NEW).tokens == plain


@pytest.mark.skipif(not can_prepack(torch.float32), reason="torch has no packed linear layers here")
@pytest.mark.parametrize("vocabulary", [None, LEAN])
def test_adapter_layers_are_packed_if_the_targets_are(vocabulary, monkeypatch):
    model = tiny_model("llama", dtype=torch.float32)
    plain = kangaroo(Target(model), eta=0.0, gamma=3, vocabulary=vocabulary)
    assert not isinstance(plain.adapter.q_proj, PrepackedLinear)
    target = Target(copy.deepcopy(model))
    target.prepare()
    packed = kangaroo(target, eta=0.0, gamma=3, vocabulary=vocabulary)
    for linear in (packed.adapter.q_proj, packed.adapter.o_proj, packed.head.linear):
        assert isinstance(linear, PrepackedLinear)
    prompt, scores = random_prompt(7, 3), []
    for drafter in (plain, packed):
        recorder = Recorder(drafter, monkeypatch)
        Session(drafter.target, drafter).generate([prompt], max_new_tokens=5)
        scores.append(recorder.drafts[0].scores)
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


def test_kangaroo_cannot_be_mixed_with_other_drafters():
    with pytest.raises(ValueError, match="KangarooDrafter, which drafts alone"):
        MixedDrafter([kangaroo(Target(tiny_model("llama")))])
