"""Extracts `LayerWeights` from a transformers decoder layer, by the names and shapes of its parts.

Norms and activations are identified by comparing their results with known ones; the attention's settings are those that
the layer passes to the attention interface. `lean_layers` then compares the whole layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor, nn

from specdec_kernels.decoder_layer.reference import activate, norm
from specdec_kernels.decoder_layer.weights import (
    Activation,
    LayerWeights,
    LinearWeights,
    NormWeights,
    Rotation,
)
from specdec_kernels.dispatch import is_plain

from .cpu_linear import PrepackedLinear
from .model_state import is_touched
from .tree_pass import Attending

# Names of norms, by position: before attention, after it, before the feed-forward part, after it.
NORMS = {
    ("input_layernorm", "post_attention_layernorm"): (0, 2),
    (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ): (0, 1, 2, 3),
    ("post_attention_layernorm", "post_feedforward_layernorm"): (1, 3),
    ("input_layernorm", "pre_feedforward_layernorm"): (0, 2),
    (
        "input_layernorm",
        "post_attention_layernorm",
        "post_self_attn_layernorm",
        "post_mlp_layernorm",
    ): (0, 2, 1, 3),
}
HEAD_NORMS = ("q_norm", "k_norm")
ACTIVATIONS = ("act_fn", "activation_fn")


class NotTakenApart(Exception):
    """Raised with the reason if a layer must run as transformers' layer."""


def take_apart(layer: Any, asked: Attending, rotation: Rotation | None) -> LayerWeights:
    """Extract a layer's weights.

    Args:
        layer: a transformers decoder layer.
        asked: its settings at the attention interface.
        rotation: the assumed kind of rotary embedding.

    Raises:
        NotTakenApart: if it has unknown parts, or parts that do more than apply their weights.
    """
    children = {name: x for name, x in layer.named_children() if any(True for _ in _weights(x))}
    attention, mlp = children.pop("self_attn", None), children.pop("mlp", None)
    places = NORMS.get(tuple(children))
    if attention is None or mlp is None or places is None:
        raise NotTakenApart(f"its parts are {', '.join(dict(layer.named_children()))}")
    norms: list[NormWeights | None] = [None] * 4
    for place, module in zip(places, children.values(), strict=True):
        norms[place] = _norm(module)
    _check_config(getattr(attention, "config", None))
    heads, kv_heads, head_dim = asked.heads, asked.kv_heads, asked.head_dim
    parts = _known(
        attention,
        ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"qkv_proj", "o_proj"}),
        {*HEAD_NORMS},
    )
    feed = _known(
        mlp, ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"}), {*ACTIVATIONS}
    )
    qkv = _linear(*(parts[x] for x in ("q_proj", "k_proj", "v_proj", "qkv_proj") if x in parts))
    if "gate_proj" in feed:
        gate, up = _linear(feed["gate_proj"]), _linear(feed["up_proj"])
    else:
        gate, up = _halves(_linear(feed["gate_up_proj"]))
    return LayerWeights(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        qkv=qkv,
        output=_linear(parts["o_proj"]),
        gate=gate,
        up=up,
        down=_linear(feed["down_proj"]),
        activation=_activation(
            next((getattr(mlp, x) for x in ACTIVATIONS if hasattr(mlp, x)), None)
        ),
        scale=asked.scale,
        input_norm=norms[0],
        attention_norm=norms[1],
        mlp_norm=norms[2],
        output_norm=norms[3],
        q_norm=_norm(parts["q_norm"]) if "q_norm" in parts else None,
        k_norm=_norm(parts["k_norm"]) if "k_norm" in parts else None,
        rotation=rotation,
        softcap=asked.softcap,
        window=asked.window,
        residual_scale=getattr(layer, "residual_multiplier", None),
    )


def _check_config(config: Any) -> None:
    """Raise NotTakenApart for config settings whose effect a short comparison may not show."""
    if getattr(config, "clip_qkv", None) is not None:
        raise NotTakenApart("it clips queries, keys and values")
    rope = getattr(config, "rope_parameters", None) or {}
    if "llama_4_scaling_beta" in rope or getattr(config, "attn_temperature_tuning", None):
        raise NotTakenApart("it scales queries by their positions")


def check_untouched(layer: nn.Module) -> None:
    """Raise NotTakenApart if a layer has hooks, another `forward`, or quantised or wrapped weights."""
    for name, module in layer.named_modules():
        here = name or type(layer).__name__
        if not type(module).__module__.startswith(
            ("torch.nn.modules.", "transformers.", "specdec.")
        ):
            raise NotTakenApart(f"{here} is a {type(module).__name__}")
        if is_touched(module):
            raise NotTakenApart(f"{here} has a hook or a forward of its own")
        for parameter in module.parameters(recurse=False):
            if not is_plain(parameter) or not parameter.is_floating_point():
                raise NotTakenApart(f"{here} has weights of class {type(parameter).__name__}")


def _known(module: nn.Module, wanted: tuple[set[str], ...], beside: set[str]) -> dict[str, Any]:
    """Return a module's parts if their names are one of the wanted sets plus any in `beside`; others must have no weights."""
    children = dict(module.named_children())
    with_weights = {name for name, child in children.items() if any(True for _ in _weights(child))}
    if with_weights - beside not in wanted or any(True for _ in module.parameters(recurse=False)):
        raise NotTakenApart(f"{type(module).__name__} has {', '.join(sorted(with_weights))}")
    return {name: children[name] for name in with_weights}


def _weights(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()


def _linear(*layers: Any) -> LinearWeights:
    for layer in layers:
        if type(layer) not in (nn.Linear, PrepackedLinear):
            raise NotTakenApart(f"it multiplies by a {type(layer).__name__}")
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if len(biases) not in (0, len(layers)):
        raise NotTakenApart("some of its products have a bias")
    return LinearWeights(tuple(layer.weight for layer in layers), tuple(biases))


def _halves(weights: LinearWeights) -> tuple[LinearWeights, LinearWeights]:
    """Split a matrix and its bias into views of the first and the second half of its outputs."""
    pairs = [[x.detach().chunk(2) for x in part] for part in weights]
    first, second = (
        LinearWeights(*(tuple(pair[at] for pair in part) for part in pairs)) for at in (0, 1)
    )
    return first, second


@torch.no_grad()
def _norm(module: Any) -> NormWeights:
    """Identify an RMSNorm by comparing its result with known ones."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not isinstance(eps, float):
        raise NotTakenApart(f"{type(module).__name__} is no RMSNorm with a weight")
    x = _numbers(3, len(weight)).to(weight)
    own = module(x)
    for offset in (False, True):
        weights = NormWeights(weight, eps, offset)
        if _same(norm(x, weights), own):
            return weights
    raise NotTakenApart(f"{type(module).__name__} is no RMSNorm that is known")


@torch.no_grad()
def _activation(module: Any) -> Activation:
    """Identify an activation by comparing its result with known ones."""
    if not callable(module):
        raise NotTakenApart("its feed-forward part has no activation")
    x = _numbers(1, 400) * 3
    own = module(x)
    found = [a for a in get_args(Activation) if _same(activate(x, a), own)]
    if not found:
        raise NotTakenApart(f"{type(module).__name__} is no activation that is known")
    known: Activation = found[0]
    return known


def _numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _same(ours: Tensor, own: Tensor) -> bool:
    """Return whether two results agree within a few roundings; other functions differ more."""
    # Transformers computes statistics in float32 in float64 models too.
    eps = max(torch.finfo(own.dtype).eps, torch.finfo(torch.float32).eps)
    return torch.allclose(ours.double(), own.double(), rtol=4 * eps, atol=4 * eps)
