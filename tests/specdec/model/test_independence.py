"""Models in which a token depends on unrelated tokens of a pass are rejected at load time, in every dtype."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from families import tiny_of
from specdec.load import load_target
from specdec.model.certificate import certify, own_logits
from specdec.model.independence import certify_independence
from specdec.model.target import Target

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
REASON = "what a layer makes of a token not to depend on others in the pass"


def named(dtype):
    return str(dtype).removeprefix("torch.")


class OneScale(nn.Module):
    """A linear layer whose activations are rounded to 8 bits with one scale for the pass."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        scale = x.abs().amax().clamp(min=1e-8) / 127
        return self.layer(((x / scale).round() * scale).to(x.dtype))


class FromTheEnd(nn.Module):
    """A linear layer with something added for all but the last tokens of a pass, as activated adapters count them."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        out = self.layer(x)
        out[..., :-2, :] *= 1.2
        return out


class Limited(nn.Module):
    """Experts that take no more than so many tokens of a pass; the others pass by."""

    def __init__(self, experts, capacity=6):
        super().__init__()
        self.experts, self.capacity = experts, capacity

    def forward(self, hidden, chosen, weights):
        for expert in range(4):
            takes = chosen == expert
            late = takes.long().cumsum(0) > self.capacity
            weights = torch.where(takes & late, 0, weights)
        return self.experts(hidden, chosen, weights)


def replaced(model, name, kind):
    for module in list(model.modules()):
        if name in dict(module.named_children()):
            setattr(module, name, kind(getattr(module, name)))
    return model.eval()


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mixtral", "olmoe"])
def test_models_with_independent_tokens_are_accepted(family, dtype):
    certify_independence(Target(tiny_of(family).to(dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        ("llama", "down_proj", OneScale),
        ("llama", "o_proj", OneScale),
        ("llama", "up_proj", FromTheEnd),
        ("mixtral", "experts", Limited),
    ],
    ids=["scale-down", "scale-o", "from-the-end", "capacity"],
)
def test_models_with_cross_token_dependence_are_rejected(family, name, kind, dtype):
    target = Target(replaced(tiny_of(family).to(dtype), name, kind))
    with pytest.raises(ValueError, match=f"ForCausalLM is not supported: expected {REASON}"):
        certify_independence(target)


def test_dependence_invisible_to_the_bfloat16_forward_comparison_is_rejected():
    model = replaced(tiny_of("llama").bfloat16(), "down_proj", OneScale)
    certify(Target(model), own_logits(model))
    with pytest.raises(ValueError, match=REASON):
        load_target(model)


def test_head_with_a_shared_scale_is_rejected():
    model = tiny_of("llama").float()
    head = model.lm_head
    head.forward = lambda x: OneScale.forward(SimpleNamespace(layer=lambda y: y @ head.weight.T), x)
    with pytest.raises(ValueError, match=REASON):
        certify_independence(Target(model))


def test_error_names_activated_lora_adapters():
    model = copy.copy(tiny_of("llama"))
    model.peft_config = {"a": SimpleNamespace(), "b": SimpleNamespace(alora_invocation_tokens=[6])}
    with pytest.raises(ValueError, match="got 'b' with alora_invocation_tokens"):
        load_target(model)
