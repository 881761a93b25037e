"""Kangaroo's adapters that the paper's was compared with: the same text, checkpoints, training."""

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from specdec.checkpoints import Layout, export_drafter, load_drafter_checkpoint, save_drafter
from specdec.drafters.kangaroo import KangarooConfig, KangarooDrafter, new_module, weights_of
from specdec.drafters.mixed import MixedDrafter
from specdec.model.target import Target
from specdec.pickers import PathPicker
from specdec.sampling import Sampling
from specdec.session import Session
from specdec_kernels import EarlyExitAdapter
from tiny import SEED, VOCABULARY, library_greedy, library_sampled, random_prompt, tiny_model

KINDS = {
    "attention": {},
    "attention-own-head": {"own_head": True},
    "layer": {"adapter": "layer", "mlp_size": 40},
    "layer-own-head": {"adapter": "layer", "mlp_size": 40, "own_head": True},
    "mlp": {"adapter": "mlp"},
    "mlp-own-head": {"adapter": "mlp", "own_head": True},
    "none": {"adapter": "none"},
    "none-own-head": {"adapter": "none", "own_head": True},
}
NEW = 16
PROMPTS = [random_prompt(5, 1) * 3, [7], random_prompt(9, 2)]


def drafter_of(target, kind, ids=None, **settings):
    torch.manual_seed(2)
    width = target.config.hidden_size
    config = KangarooConfig(
        width, 4, 2, 6, exit_layer=1, **({"eta": 0.02, "gamma": 3} | KINDS[kind] | settings)
    )
    return KangarooDrafter(target, config, new_module(config, VOCABULARY, ids), ids)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_equal_transformers(kind, lean):
    target = Target(tiny_model("llama"))
    drafter = drafter_of(target, kind, torch.arange(0, VOCABULARY, 3) if lean else None)
    session = Session(target, drafter, max_nodes=8, guard=False)
    greedy = session.generate(PROMPTS, max_new_tokens=NEW)
    assert greedy.tokens == [library_greedy(target.model, p, NEW) for p in PROMPTS]
    assert greedy.metrics.nodes_per_round > 1.5
    picker = PathPicker(Sampling(SEED, torch.arange(3)))
    drawn = session.generate(PROMPTS, max_new_tokens=NEW, picker=picker)
    assert drawn.tokens == [library_sampled(target.model, p, NEW, i) for i, p in enumerate(PROMPTS)]


@pytest.mark.parametrize("kind", ["layer", "mlp", "none"])
def test_exact_bfloat16_text_does_not_depend_on_the_adapter(kind):
    target = Target(tiny_model("llama", dtype=torch.bfloat16), exact=True)
    plain = Session(target, "plain").generate(PROMPTS, max_new_tokens=NEW)
    session = Session(target, drafter_of(target, kind), max_nodes=8, guard=False)
    assert session.generate(PROMPTS, max_new_tokens=NEW).tokens == plain.tokens


def silent(adapter):
    """Let an adapter add nothing to what it reads."""
    with torch.no_grad():
        for name in ("o_proj", "down_proj"):
            if hasattr(adapter, name):
                getattr(adapter, name).weight.zero_()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "own" not in kind])
def test_adapters_with_zero_output_draft_the_same(kind):
    target = Target(tiny_model("llama"))
    drafters = [drafter_of(target, each) for each in ("none", kind)]
    rounds = []
    for drafter in drafters:
        silent(drafter.adapter)
        session, seen = Session(target, drafter, max_nodes=8, guard=False), []
        session.generate([PROMPTS[0]], max_new_tokens=NEW, on_round=seen.append)
        rounds.append([each.tree.tokens.tolist() for each in seen if each.tree is not None])
    assert rounds[0] == rounds[1]


def test_whole_layer_adapter_equals_transformers_layer():
    """A layer of the target in place of the adapter computes what it does there, but for the last norm."""
    model = tiny_model("llama")
    config = KangarooConfig(
        48, 6, 2, 8, exit_layer=2, rms_norm_eps=1e-6, adapter="layer", mlp_size=64
    )
    adapter, layer = config.new_adapter().double(), model.model.layers[2]
    names = {"input_norm": layer.input_layernorm, "mlp_norm": layer.post_attention_layernorm}
    names |= {f"{n}_proj": getattr(layer.self_attn, f"{n}_proj") for n in "qkvo"}
    names |= {f"{n}_proj": getattr(layer.mlp, f"{n}_proj") for n in ("gate", "up", "down")}
    names |= {"output_norm": model.model.norm}
    adapter.load_state_dict({f"{n}.weight": part.weight for n, part in names.items()})
    ids = torch.tensor([random_prompt(9, 4)])
    with torch.no_grad():
        out = model.model(ids, output_hidden_states=True)
        ours = adapter.forward_sequence(out.hidden_states[2])
    torch.testing.assert_close(ours, out.last_hidden_state, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_round_trip_is_bit_identical(kind, tmp_path):
    target = Target(tiny_model("llama"))
    ids = torch.arange(1, VOCABULARY, 2)
    drafter = drafter_of(target, kind, ids)
    save_drafter(tmp_path, drafter)
    loaded = load_drafter_checkpoint(tmp_path, target)
    assert asdict(loaded.config) == asdict(drafter.config)
    ours, theirs = weights_of(loaded), weights_of(drafter)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    if kind != "attention":
        with pytest.raises(
            ValueError, match="adapter: expected attention before the target's head"
        ):
            export_drafter(tmp_path, Layout.kangaroo)


def test_papers_adapter_is_unchanged():
    config = KangarooConfig(48, 4, 2, 6, exit_layer=1)
    assert type(config.new_adapter()) is EarlyExitAdapter
    assert set(config.new_adapter().state_dict()) == {
        f"{name}.weight"
        for name in ("input_norm", "q_proj", "k_proj", "v_proj", "o_proj", "output_norm")
    }


def test_adapters_cannot_be_mixed_with_other_drafters():
    with pytest.raises(ValueError, match="expected ones that can share a tree"):
        MixedDrafter([drafter_of(Target(tiny_model("llama")), "none")])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"adapter": "rnn"}, "adapter: expected one of attention, layer, mlp, none, got 'rnn'"),
        ({"adapter": "layer"}, "mlp_size: expected at least 1, got None"),
        ({"adapter": "layer", "mlp_size": 0}, "mlp_size: expected at least 1, got 0"),
        ({"adapter": "mlp", "mlp_size": 4}, "mlp_size: expected None for mlp, got 4"),
    ],
)
def test_error_names_the_field_that_is_out_of_range(shape, message):
    with pytest.raises(ValueError, match=message):
        KangarooConfig(48, 4, 2, 6, exit_layer=1, **shape)


def test_one_token_adapters_need_no_cache():
    target = Target(tiny_model("llama"))
    hidden = torch.randn(2, 5, 48, dtype=torch.float64)
    adapter = drafter_of(target, "mlp").adapter
    one = adapter.forward_sequence(hidden)[:, 3]
    torch.testing.assert_close(one, adapter(hidden[:, 3]))
    by_hand = hidden[:, 3]
    normed = F.rms_norm(by_hand, (48,), adapter.input_norm.weight, 1e-6)
    by_hand = by_hand + adapter.down_proj(F.silu(adapter.up_proj(normed)))
    torch.testing.assert_close(one, F.rms_norm(by_hand, (48,), adapter.output_norm.weight, 1e-6))
