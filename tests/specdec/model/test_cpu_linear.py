import copy

import pytest
import torch
from torch import nn

import every_drafter
from counted_operators import Counted
from specdec.load import load_target
from specdec.model.cpu_linear import PrepackedLinear, prepack_linears
from specdec.session import Session
from specdec_kernels.decoder_layer import PrepackedProduct, can_prepack
from tiny import library_greedy, random_prompt, tiny_model

pytestmark = pytest.mark.skipif(
    not can_prepack(torch.float32), reason="torch has no packed linear layers on this machine"
)


@torch.inference_mode()
@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "phi3"]
)  # without and with bias, and already fused
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_changes_results_only_by_rounding(family, dtype):
    with torch.inference_mode(False):
        model = copy.deepcopy(tiny_model(family, dtype=dtype))
    ids = torch.tensor([[3, 4, 5, 6]])
    before, names = model(ids).logits, set(model.state_dict())
    packed = prepack_linears(model)
    assert packed == sum(isinstance(m, nn.Linear) for m in model.modules())
    after = model(ids).logits
    if dtype == torch.bfloat16:
        assert torch.equal(after, before)  # the same library multiplies, without reordering first
    else:
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert set(model.state_dict()) == names
    assert prepack_linears(model) == 0


@torch.inference_mode()
def test_sibling_layers_share_one_product_in_any_call_order():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, n) for n in (8, 4, 4))

    module = Attention()
    plain = copy.deepcopy(module)
    assert prepack_linears(module) == 3
    assert module.q_proj.product is module.v_proj.product
    x, y = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    calls = [
        ("q_proj", x),
        ("k_proj", x),
        ("k_proj", x),
        ("v_proj", y),
        ("q_proj", x),
        ("v_proj", x),
    ]
    for name, given in calls:
        out = getattr(module, name)(given)
        torch.testing.assert_close(out, getattr(plain, name)(given), rtol=1e-5, atol=1e-5)
    kept = module.q_proj(x)
    x.zero_()  # the same object with other values, asked for a part that was handed out
    torch.testing.assert_close(module.q_proj(x), plain.q_proj(x), rtol=1e-5, atol=1e-5)
    assert kept.abs().sum() > 0


@torch.inference_mode()
def test_layer_without_siblings_is_one_operator():
    module = nn.Sequential(nn.Linear(8, 4))
    assert prepack_linears(module) == 1
    with Counted() as counted:
        module[0](torch.ones(1, 8))
    assert counted.count == 2  # of which one makes the input


def test_unsupported_layers_are_not_packed():
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), nn.Embedding(3, 4))
    assert prepack_linears(model) == 0
    assert not any(isinstance(m, PrepackedLinear) for m in model.modules())


class Marked(torch.Tensor):
    """Stands for weights that are quantised, sharded or else more than their values."""


def marked(layer):
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Marked), requires_grad=False)


def parametrised(layer):
    nn.utils.parametrizations.weight_norm(layer)


def hooked(layer):
    layer.register_forward_pre_hook(lambda module, args: None)


def overridden(layer):
    layer.forward = lambda x: x


def subclassed(layer):
    layer.__class__ = type("OtherLinear", (nn.Linear,), {})


@pytest.mark.parametrize("change", [marked, parametrised, hooked, overridden, subclassed])
def test_modified_linear_layers_are_not_packed(change):
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("q_proj", "k_proj", "v_proj", "o")})
    change(model["k_proj"])
    assert prepack_linears(model) == 1
    assert [name for name, m in model.items() if isinstance(m, PrepackedLinear)] == ["o"]


def test_target_with_subclassed_weights_decodes_unpacked():
    model = copy.deepcopy(tiny_model("llama", dtype=torch.float32))
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            marked(layer)
    target = load_target(model, prepack=True)
    assert not target.prepacked
    prompt = random_prompt(9, 1)
    for drafter in ("lookup", "best"):
        written = Session(target, drafter).generate([prompt], max_new_tokens=12).tokens[0]
        assert written == library_greedy(model, prompt, 12)
    for make in (every_drafter.projected_redrafter, every_drafter.kangaroo):
        with pytest.raises(ValueError, match="expected a plain head .* got Linear with Marked"):
            make(target)


def test_packing_is_skipped_without_the_packed_operators(monkeypatch):
    def missing(self, weights):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(PrepackedProduct, "__init__", missing)
    can_prepack.cache_clear()
    try:
        assert not can_prepack(torch.float32)
        assert prepack_linears(nn.Sequential(nn.Linear(4, 4))) == 0
        target = load_target(copy.deepcopy(tiny_model("llama", dtype=torch.float32)), prepack=True)
        assert all(target.lean.layers) and not target.prepacked
    finally:
        can_prepack.cache_clear()


def test_gradients_flow_through_packed_layers():
    model = nn.Sequential(nn.Linear(4, 4))
    assert prepack_linears(model) == 1
    model(torch.ones(2, 4)).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_deprecated_pack_option_works_and_warns():
    with pytest.warns(DeprecationWarning, match="pack: expected the argument prepack"):
        assert load_target(
            copy.deepcopy(tiny_model("llama", dtype=torch.float32)), pack=True
        ).prepacked
