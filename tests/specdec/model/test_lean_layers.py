"""Lean layers: which models have them, and that they agree with transformers' layers."""

import copy

import pytest
import torch
from torch import nn
from torch.profiler import profile
from transformers import AutoModelForCausalLM

from counted_operators import Counted
from families import WORKING, tiny_of
from specdec.load import load_target
from specdec.model.cache import Rows
from specdec.model.cpu_linear import PrepackedLinear
from specdec.model.lean_layers import LeanLayers, lean_layers
from specdec.model.target import Target
from specdec.session import Session
from specdec.tree import TokenTree
from specdec_kernels import pack_tree
from specdec_kernels.decoder_layer import can_prepack
from tiny import FAMILIES, library_greedy, random_prompt, tiny_model

LEAN = {
    "cwm", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "granite", "helium", "llama",
    "ministral", "mistral", "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "vaultgemma",
} & set(WORKING)  # fmt: skip
PROMPT = random_prompt(12, 5)


def fresh(family="llama", seed=11, dtype=torch.float32):
    return copy.deepcopy(tiny_model(family, seed=seed, dtype=dtype))


def library(target):
    return LeanLayers(len(target.layer_types), reason="compared with")


def a_tree(target):
    parents = torch.tensor([[-1, 0, 0, 1, 1]])
    packed = pack_tree(
        torch.tensor([4]), torch.tensor([[5, 6, 7, 8]]), parents[:, 1:] - 1, torch.zeros(1, 4),
        capacity=5, max_depth=4,
    )  # fmt: skip
    return TokenTree.from_packed(packed)


@torch.inference_mode()
def layer_by_layer(target, exact=None):
    """What each layer makes of the same input: the library's, ours, and where there is a model for it the exact."""
    tree, rows = a_tree(target), Rows.first(1, target.device)
    caches, found = {}, []
    for name, of in (("own", target), ("exact", exact or target)):
        caches[name] = of.new_cache(rows=1, capacity=20, tree_capacity=8)
        of.prefill(torch.tensor([PROMPT]), [len(PROMPT)], caches[name])
    hidden = target.embed(tree.tokens)
    for at in range(len(target.layer_types)):
        outs = {}
        for name, lean in (("library", library(target)), ("lean", target.lean)):
            caches["own"].open(tree.ancestors, tree.depth, rows)
            outs[name] = target.run_layers(hidden, caches["own"], at, at + 1, lean=lean)
        if exact is not None:
            caches["exact"].kv.copy_(caches["own"].kv)
            caches["exact"].open(tree.ancestors, tree.depth, rows)
            given = hidden.double()
            outs["exact"] = exact.run_layers(given, caches["exact"], at, at + 1)
        found.append(outs)
        hidden = outs["library"]
    return found


@pytest.mark.parametrize("name", WORKING)
def test_every_family_runs_lean_or_gives_a_reason(name):
    target = load_target(tiny_of(name))
    assert len(target.lean.reasons) == len(target.layer_types)
    for layer, reason in zip(target.lean.layers, target.lean.reasons, strict=True):
        assert (layer is None) == (reason is not None)
    if name in LEAN:
        assert all(target.lean.layers), target.lean.reasons
    for outs in layer_by_layer(target):
        error = (outs["lean"] - outs["library"]).norm() / outs["library"].norm()
        assert error <= 1e-6


@pytest.mark.parametrize("prepack", [False, True], ids=["plain", "prepacked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "gemma3_text", "gemma2", "granite", "olmo2", "glm"]
)
def test_lean_rounding_errors_do_not_exceed_transformers(name, dtype, prepack):
    if prepack and not can_prepack(dtype):
        pytest.skip("torch has no such operators here")
    squares = {"lean": 0.0, "library": 0.0}
    for seed in range(12):
        torch.manual_seed(seed)
        model = tiny_of(name).to(dtype)
        for weight in model.parameters():
            weight.data.copy_(torch.randn_like(weight) * weight.float().std().clamp(min=0.05))
        exact = Target(copy.deepcopy(model).double())
        target, theirs = load_target(model, prepack=prepack), Target(copy.deepcopy(model))
        if prepack:
            theirs.prepare()  # the same products
        assert all(target.lean.layers)
        runs = (layer_by_layer(target, exact), layer_by_layer(theirs, exact))
        for ours, stock in zip(*runs, strict=True):
            for kind, outs in (("lean", ours), ("library", stock)):
                error = (
                    outs[kind if kind == "lean" else "library"].double() - outs["exact"]
                ).norm()
                squares[kind] += float(error / outs["exact"].norm()) ** 2
    # Most are below the library's; Gemma 3 in float32 is 1.05 of it (docs/results/cpu.md).
    assert squares["lean"] ** 0.5 <= 1.06 * squares["library"] ** 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_rows_tokens_equal_transformers(family, dtype):
    model = tiny_model(family, dtype=dtype)
    target = load_target(model)
    prompts = [random_prompt(length, length) for length in (3, 17, 9)]
    written = Session(target, "lookup").generate(prompts, max_new_tokens=20).tokens
    stock = Session(load_target(model, layers="library"), "plain")
    assert written == stock.generate(prompts, max_new_tokens=20).tokens
    if dtype == torch.float64:
        assert written == [library_greedy(model, prompt, 20) for prompt in prompts]


def test_layers_library_option_runs_transformers_layers():
    target = load_target(fresh(), layers="library")
    assert not any(target.lean.layers) and set(target.lean.reasons) == {"asked for"}
    with pytest.raises(ValueError, match="layers: expected 'auto' or 'library', got 'lean'"):
        load_target(fresh(), layers="lean")


def hooked(model):
    model.model.layers[1].mlp.register_forward_hook(lambda module, given, out: out * 1.5)


def offloaded(model):
    norm = model.model.layers[1].input_layernorm
    forward = norm.forward
    norm.forward = lambda x: forward(x) * 0.5


class Doubling(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def wrapped(model):
    mlp = model.model.layers[1].mlp
    mlp.up_proj.__class__ = Doubling


def another_activation(model):
    model.model.layers[1].mlp.act_fn = nn.Tanh().eval()


@pytest.mark.parametrize("touch", [hooked, offloaded, wrapped, another_activation])
def test_modified_layers_run_as_transformers_layers(touch):
    model = fresh()
    touch(model)
    target = load_target(model)
    assert [layer is None for layer in target.lean.layers] == [False, True, False]
    text = Session(target, "lookup").generate([PROMPT], max_new_tokens=12).tokens[0]
    assert text == library_greedy(model, PROMPT, 12)


@pytest.mark.parametrize("prepack", [False, True], ids=["plain", "prepacked"])
@pytest.mark.parametrize("touch", [hooked, offloaded])
def test_hooks_added_later_take_effect_at_the_next_text(touch, prepack):
    model = fresh()
    target = load_target(model, prepack=prepack)
    session = Session(target, "plain")
    before = session.generate([PROMPT], max_new_tokens=12).tokens[0]
    touch(model)
    after = session.generate([PROMPT], max_new_tokens=12).tokens[0]
    assert after == library_greedy(model, PROMPT, 12) != before


def test_differing_layer_runs_as_transformers_layer_and_reports_the_difference(monkeypatch):
    target = Target(fresh())
    monkeypatch.setattr("specdec.model.layer_parts.activate", lambda x, activation: x.tanh())
    lean_layers(target, prepack=False)
    assert not any(target.lean.layers)
    assert all("no activation that is known" in reason for reason in target.lean.reasons)
    monkeypatch.undo()
    monkeypatch.setattr("specdec.model.layer_parts._activation", lambda module: "gelu")
    lean_layers(target, prepack=False)
    assert not any(target.lean.layers)
    assert all(r.startswith("it differs from the library's by") for r in target.lean.reasons)


def test_weights_are_shared_and_the_model_is_not_changed(tmp_path):
    with torch.inference_mode(False), torch.enable_grad():
        model = fresh()
        before = {name: weight.data_ptr() for name, weight in model.state_dict().items()}
        classes = [type(module) for module in model.modules()]
        target = load_target(model)
        ours = target.lean.layers[0]
        assert ours.down.weights.weights[0].data_ptr() == model.model.layers[0].mlp.down_proj.weight.data_ptr()  # fmt: skip
        Session(target, "lookup").generate([PROMPT], max_new_tokens=5)
        assert {name: weight.data_ptr() for name, weight in model.state_dict().items()} == before
        assert [type(module) for module in model.modules()] == classes
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert library_greedy(again, PROMPT, 8) == library_greedy(model, PROMPT, 8)
        model.train()
        model(torch.tensor([PROMPT]), labels=torch.tensor([PROMPT])).loss.backward()
        assert model.model.layers[0].mlp.down_proj.weight.grad is not None


@pytest.mark.skipif(not can_prepack(torch.float32), reason="torch has no such operators here")
def test_prepacking_does_not_change_modules_of_lean_layers():
    model = fresh()
    target = load_target(model, prepack=True)
    assert target.prepacked and target.lean.prepacked
    patched = [name for name, m in model.named_modules() if isinstance(m, PrepackedLinear)]
    assert patched == ["lm_head"]


def test_two_targets_of_one_model_generate_correct_tokens():
    model = fresh(dtype=torch.float64)
    first, plain, second = (load_target(model, layers=x) for x in ("auto", "library", "auto"))
    expected = library_greedy(model, PROMPT, 10)
    for target in (first, plain, second, first):
        assert Session(target, "lookup").generate([PROMPT], max_new_tokens=10).tokens[0] == expected


def test_transformers_layers_run_with_gradients():
    target = load_target(fresh())
    with torch.inference_mode(False):
        assert torch.is_grad_enabled() and not target.lean.runs(0)
        with torch.no_grad():
            assert target.lean.runs(0)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 28), (torch.bfloat16, 30)], ids=str)
def test_operators_per_layer_do_not_exceed_the_recorded_maximum(dtype, most):
    """Counted where they are called, and with all that these call: a third of the library's."""
    calls, inner = {}, {}
    for layers in ("auto", "library"):
        target = load_target(fresh(dtype=dtype), prepack=True, layers=layers)
        ids, rows = torch.tensor([[5]]), Rows.first(1, target.device)
        counts = []
        with torch.inference_mode():
            cache = target.new_cache(rows=1, capacity=20, tree_capacity=8)
            target.prefill(torch.tensor([PROMPT]), [len(PROMPT)], cache)
            for end in (2, 3):  # one layer more
                for counter in (Counted(), profile()):
                    chain = TokenTree.chain(ids)
                    cache.open(chain.ancestors, chain.depth, rows)
                    hidden = target.embed(ids)
                    target.run_layers(hidden, cache, 0, end)
                    cache.open(chain.ancestors, chain.depth, rows)
                    with counter:
                        target.run_layers(hidden, cache, 0, end)
                    counts.append(counter.count if isinstance(counter, Counted) else len(counter.events()))  # fmt: skip
        calls[layers], inner[layers] = counts[2] - counts[0], counts[3] - counts[1]
    assert calls["auto"] <= most
    assert 3 * inner["auto"] <= inner["library"]
