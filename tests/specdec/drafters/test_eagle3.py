"""EAGLE-3: the target's text whatever is drafted, and keys and values that are exact behind every text."""

from contextlib import contextmanager

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

import every_drafter
from specdec.costs.guard import Guard
from specdec.drafters import LookupDrafter, MixedDrafter
from specdec.drafters.eagle3 import Eagle3Config, Eagle3Drafter, new_module
from specdec.drafters.parts.beams import keep_best
from specdec.load import load_target
from specdec.model.target import Target
from specdec.pickers import PathPicker
from specdec.sampling import Sampling
from specdec.session import Session
from tiny import (
    FAMILIES,
    SEED,
    VOCABULARY,
    library_greedy,
    library_sampled,
    random_prompt,
    tiny_model,
)

NEW = 20
PROMPTS = [random_prompt(5, 1) * 3, [7], random_prompt(9, 2) * 2, random_prompt(17, 3)]


def config(**options):
    shape = {"hidden_size": 48, "intermediate_size": 40, "heads": 4, "kv_heads": 2, "head_dim": 16}
    return Eagle3Config(**(shape | {"layers": (1, 2)} | options))


def true_keys_values(drafter, ids):
    """Of the pairs of a text, from the library's own hidden states: `[2, G, L - 1, D]`."""
    states = drafter.target.model(ids[None], output_hidden_states=True).hidden_states
    read = drafter._fuse({layer: states[layer][:, :-1] for layer in drafter.listener.layers})
    embed = drafter.model.embedding if drafter.config.own_embedding else drafter.target.embed
    joined = drafter.model.join(embed(ids[None, 1:]), read)
    place = torch.arange(len(ids) - 1)[None]
    return torch.cat(drafter.model.keys_values(joined, place))


@contextmanager
def checked(drafter):
    """Compare what a drafter has kept with what is true, whenever it is asked for a draft."""
    draft, counted = drafter.draft, []

    def look(state, budget):
        for row in state.rows.host:
            length = state.cache.host_lengths[row]
            kept = state.cache.drafter_kv[0, :, state.cache.row_of(row), :, :length]
            true = true_keys_values(drafter, state.text.ids[row, : length + 1])
            torch.testing.assert_close(kept, true, rtol=1e-6, atol=1e-6)
            counted.append(row)
        return draft(state, budget)

    drafter.draft = look
    yield counted
    del drafter.draft


@pytest.mark.parametrize("make", [every_drafter.eagle3, every_drafter.narrow_eagle3])
@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("how", ["greedy", "sampled"])
@pytest.mark.parametrize("at_once", [None, 2])
def test_keys_and_values_equal_recomputed_ones_after_every_text(
    family, how, at_once, make, monkeypatch
):
    monkeypatch.setattr("specdec.model.target.PREFILL_CHUNK", 8)
    model = tiny_model(family)
    target = Target(model)
    drafter = make(target)
    rows = len(PROMPTS)
    picker = PathPicker(Sampling(SEED, torch.arange(rows))) if how == "sampled" else None
    write = library_greedy if how == "greedy" else library_sampled
    expected = [
        write(model, prompt, NEW, *([row] if how == "sampled" else []))
        for row, prompt in enumerate(PROMPTS)
    ]
    with checked(drafter) as counted:
        session = Session(target, drafter, max_nodes=8, guard=False)
        written = session.generate(PROMPTS, max_new_tokens=NEW, picker=picker, rows_at_once=at_once)
    assert written.tokens == expected
    assert len(counted) > 3 * rows


def test_keys_and_values_equal_recomputed_ones_while_drafting_pauses(monkeypatch):
    target = Target(tiny_model("llama"))
    drafter = every_drafter.eagle3(target)

    def in_turn(self, gained, plain, rows, *, drafted):
        self._rounds += 1
        self.resting = self._rounds // 2 % 2 == 1

    monkeypatch.setattr(Guard, "count", in_turn)
    with checked(drafter) as counted:
        Session(target, drafter).generate(PROMPTS, max_new_tokens=NEW)
        Session(target, drafter).generate(PROMPTS, max_new_tokens=NEW, max_nodes=[1, 5, 1, 3])
    assert counted


def test_keys_and_values_equal_recomputed_ones_in_copies_and_after_rollback():
    model = tiny_model("llama")
    target = Target(model)
    drafter = every_drafter.eagle3(target)
    with checked(drafter):
        picker = PathPicker(Sampling(SEED, torch.arange(3)))
        session = Session(target, drafter)
        session.generate(PROMPTS[:1], max_new_tokens=NEW, copies=3, picker=picker)
        session = Session(target, drafter)
        text = list(PROMPTS[0])
        for seed, cut in ((5, 0), (6, 9), (7, 1)):
            text += session.generate([text], max_new_tokens=12).tokens[0]
            # What follows the token before the cut is another one now.
            text = text[: len(text) - cut] + random_prompt(4, seed)
        assert session.generate([text], max_new_tokens=9).tokens == [library_greedy(model, text, 9)]
        # A cache that another session goes on with.
        again = Session(target, drafter, cache=session.cache)
        text += library_greedy(model, text, 9)
        assert again.generate([text], max_new_tokens=9).tokens == [library_greedy(model, text, 9)]


@pytest.mark.sampled
@pytest.mark.parametrize(
    "make",
    [
        every_drafter.eagle3,
        every_drafter.lean_eagle3,
        every_drafter.narrow_eagle3,
        every_drafter.mixed_eagle3,
    ],
)
@pytest.mark.parametrize("how", ["greedy", "sampled"])
@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_transformers(family, rows, how, make):
    model = tiny_model(family)
    target = Target(model)
    picker = PathPicker(Sampling(SEED, torch.arange(rows))) if how == "sampled" else None
    expected = [
        library_greedy(model, prompt, NEW) if picker is None else library_sampled(model, prompt, NEW, row)
        for row, prompt in enumerate(PROMPTS[:rows])
    ]  # fmt: skip
    session = Session(target, make(target), max_nodes=24, guard=False)
    assert session.generate(PROMPTS[:rows], max_new_tokens=NEW, picker=picker).tokens == expected
    # Rows that end at their own times, in a session that has written before.
    end = expected[0][NEW // 2]
    cut = [text[: text.index(end) + 1] if end in text else text for text in expected]
    again = session.generate(PROMPTS[:rows], max_new_tokens=NEW, eos_token_ids=[end], picker=picker)
    assert again.tokens == cut


def test_head_of_a_target_with_a_narrower_embedding_drafts():
    torch.manual_seed(0)
    shape = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=48, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=128, do_layer_norm_before=False,
    )  # fmt: skip
    with torch.inference_mode(False):
        target = Target(OPTForCausalLM(shape).double().eval())
    assert target.embedding.shape == (VOCABULARY, 32)
    shape = config(hidden_size=32, target_size=48, depth=3, width=3, min_prob=0, min_step_prob=0)
    drafter = Eagle3Drafter(target, shape, new_module(shape, VOCABULARY, None))
    with checked(drafter) as counted:
        session = Session(target, drafter, max_nodes=8, guard=False)
        written = session.generate(PROMPTS, max_new_tokens=NEW)
    assert counted
    assert written.tokens == [library_greedy(target.model, prompt, NEW) for prompt in PROMPTS]


@pytest.mark.parametrize("norm_residual", [False, True])
def test_layer_behind_attention_equals_the_formula(norm_residual):
    torch.manual_seed(0)
    model = new_module(config(norm_residual=norm_residual), VOCABULARY, None).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight))
    embedded, x = torch.randn(2, 3, 5, 48, dtype=torch.float64)
    attended = torch.randn(3, 5, 4, 16, dtype=torch.float64)

    def normed(rows, norm):
        return rows / (rows.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

    pair = torch.cat([normed(embedded, model.embedding_norm), normed(x, model.hidden_norm)], -1)
    torch.testing.assert_close(model.join(embedded, x), pair)
    r = normed(x, model.hidden_norm) if norm_residual else x
    r = r + attended.flatten(2) @ model.o_proj.weight.T
    m = normed(r, model.mlp_norm)
    gate, up = m @ model.gate_proj.weight.T, m @ model.up_proj.weight.T
    y = r + (gate * gate.sigmoid() * up) @ model.down_proj.weight.T
    torch.testing.assert_close(model.finish(pair, x, attended), y)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("make", [every_drafter.eagle3, every_drafter.narrow_eagle3])
def test_exact_bfloat16_text_does_not_depend_on_the_draft(rows, make):
    target = Target(tiny_model("llama", dtype=torch.bfloat16), exact=True)
    plain = Session(target, "plain").generate(PROMPTS[:rows], max_new_tokens=NEW)
    session = Session(target, make(target), guard=False)
    assert session.generate(PROMPTS[:rows], max_new_tokens=NEW).tokens == plain.tokens


def test_lean_layers_return_the_same_hidden_states():
    target = load_target(tiny_model.__wrapped__("llama", dtype=torch.float32))
    assert all(target.lean.layers)
    drafter = every_drafter.eagle3(target)
    prompt = PROMPTS[2]
    session = Session(target, drafter, guard=False)
    session.generate([prompt], max_new_tokens=NEW)
    length = session.cache.host_lengths[0]
    ids = torch.tensor(prompt + library_greedy(target.model, prompt, NEW))[: length + 1]
    with torch.inference_mode():
        true = true_keys_values(drafter, ids)
    count = true.shape[2]
    kept = session.cache.drafter_kv[0, :, 0, :, :count]
    torch.testing.assert_close(kept, true, rtol=1e-3, atol=1e-3)


def test_no_hidden_states_are_stored_without_a_listener():
    target = Target(tiny_model("llama"))
    seen = []

    class Looking(LookupDrafter):
        def observe(self, state, tree, accepted, verified):
            seen.append((dict(verified.inputs), state.inputs))

    session = Session(target, Looking())
    session.generate(PROMPTS[:1], max_new_tokens=5)
    assert seen and all(pair == ({}, {}) for pair in seen)
    assert session.cache.drafter_kv is None


def test_unlikely_nodes_and_steps_are_left_out():
    target = Target(tiny_model("llama"))

    def nodes(**settings):
        sizes = []
        drafter = every_drafter.eagle3(target, **settings)
        session = Session(target, drafter, max_nodes=16, guard=False)
        session.generate(PROMPTS[:1], max_new_tokens=NEW, on_round=lambda r: sizes.append(r))
        trees = [r.tree for r in sizes if r.tree is not None][:-4]
        return max(int(t.sizes) for t in trees), max(int(t.depth.max()) for t in trees)

    most, deepest = nodes()
    assert (most, deepest) == (16, 3)
    assert nodes(min_step_prob=1.0) == (4, 1)
    assert nodes(min_prob=0.9)[0] == 1
    assert nodes(depth=1, width=2) == (3, 1)


def test_best_proposals_keep_their_parents():
    tokens = torch.arange(7)[None]
    parents = torch.tensor([[-1, -1, 0, 0, 1, 2, 4]])
    scores = torch.tensor([[-1.0, -2.0, -1.0, -5.0, -2.5, -1.5, -9.0]])
    kept = keep_best(tokens, parents, scores, 4)
    assert kept[0].tolist() == [[0, 1, 2, 5]]
    assert kept[1].tolist() == [[-1, -1, 0, 2]]
    assert kept[2].tolist() == [[-1.0, -2.0, -1.0, -1.5]]
    assert all(a is b for a, b in zip(keep_best(tokens, parents, scores, 7), (tokens, parents, scores), strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size: expected at least 1, got 0"),
        ({"kv_heads": 3}, "kv_heads: expected a divisor of 4 heads, got 3"),
        ({"head_dim": 7}, "head_dim: expected an even number from 2 on, got 7"),
        ({"rope_theta": 0.0}, "rope_theta: expected above 0, got 0.0"),
        ({"layers": (2, 1)}, r"layers: expected ascending numbers from 1 on, got \[2, 1\]"),
        ({"layers": (0, 1)}, r"layers: expected ascending numbers from 1 on, got \[0, 1\]"),
        ({"target_size": 0}, "target_size: expected at least 1, got 0"),
        ({"depth": 17}, "depth: expected 1 to 16, got 17"),
        ({"width": 0}, "width: expected 1 to 16, got 0"),
        ({"min_prob": 1.5}, "min_prob: expected 0 to 1, got 1.5"),
    ],
)
def test_out_of_range_configuration_is_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_default_layers_are_the_authors():
    assert config(layers=None).layers_of(7) == (2, 3, 4)
    assert config(layers=None).layers_of(8) == (2, 4, 5)
    assert config(layers=None).layers_of(32) == (2, 16, 29)
    assert config(layers=[1, 2]).layers == (1, 2)
    with pytest.raises(
        ValueError, match=r"layers: expected some that are named, as the target has 6 layers"
    ):
        config(layers=None).layers_of(6)
    with pytest.raises(
        ValueError, match=r"layers: expected 1 to 2 of the target's 3 layers, got \[1, 3\]"
    ):
        config(layers=(1, 3)).layers_of(3)


@pytest.mark.parametrize(
    ("options", "vocabulary", "message"),
    [
        ({"hidden_size": 32}, None, "hidden_size: expected the target's 48, got 32"),
        ({"target_size": 32}, None, "target_size: expected the target's 48, got 32"),
        ({"layers": None}, None, "layers: expected some that are named"),
        ({}, torch.tensor([3, 2]), "draft_vocabulary: expected ascending ids"),
    ],
)
def test_model_that_does_not_fit_the_target_is_rejected(options, vocabulary, message):
    target, shape = Target(tiny_model("llama")), config(**options)
    with pytest.raises(ValueError, match=message):
        Eagle3Drafter(target, shape, new_module(shape, VOCABULARY, vocabulary), vocabulary)


def test_head_of_another_vocabulary_and_second_listener_are_rejected():
    target, shape = Target(tiny_model("llama")), config()
    with pytest.raises(ValueError, match=f"output: expected {VOCABULARY} rows"):
        Eagle3Drafter(target, shape, new_module(shape, 50, None))
    with pytest.raises(ValueError, match="drafters: expected one that listens to layers, got Eagle3Drafter, Eagle3Drafter"):  # fmt: skip
        MixedDrafter([every_drafter.eagle3(target), every_drafter.eagle3(target)])
