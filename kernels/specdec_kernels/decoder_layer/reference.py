"""A decoder layer in plain PyTorch, with transformers' order of roundings."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .weights import Activation, LayerWeights, LinearWeights, NormWeights, Rotation

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention function: takes queries `[B, N, H, D]`, keys and values `[B, N, G, D]`; returns `[B, N, H, D]`."""


def decoder_layer_reference(
    hidden: Tensor, layer: LayerWeights, cos: Tensor, sin: Tensor, attend: Attend
) -> Tensor:
    """Run one layer.

    Args:
        hidden: `[B, N, E]`.
        layer: its weights.
        cos: `[B, N, R]`, cosines of the model's rotary embedding, R <= D; dimensions from R on are not rotated.
        sin: like `cos`.
        attend: stores keys and values, and attends.

    Returns:
        `[B, N, E]`.
    """
    heads, kv_heads = layer.heads, layer.kv_heads
    qkv = linear(norm(hidden, layer.input_norm), layer.qkv)
    q, k, v = qkv.split([x * layer.head_dim for x in (heads, kv_heads, kv_heads)], -1)
    q, k = head_norm(q, layer.q_norm, layer.head_dim), head_norm(k, layer.k_norm, layer.head_dim)
    q, k, v = (x.unflatten(-1, (-1, layer.head_dim)) for x in (q, k, v))
    if layer.rotation is not None:
        q, k = (rotate(x, cos[..., None, :], sin[..., None, :], layer.rotation) for x in (q, k))
    added = linear(attend(q, k, v).flatten(2), layer.output)
    hidden = add(hidden, norm(added, layer.attention_norm), layer.residual_scale)

    read = norm(hidden, layer.mlp_norm)
    gated = activate(linear(read, layer.gate), layer.activation) * linear(read, layer.up)
    added = linear(gated, layer.down)
    return add(hidden, norm(added, layer.output_norm), layer.residual_scale)


def linear(x: Tensor, weights: LinearWeights) -> Tensor:
    """Multiply `[..., in]` with one matrix, or with several whose outputs are concatenated."""
    biases = weights.biases or (None,) * len(weights.weights)
    parts = [F.linear(x, w, b) for w, b in zip(weights.weights, biases, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def norm(x: Tensor, weights: NormWeights | None) -> Tensor:
    """Apply RMSNorm to `[..., E]`, with float32 statistics as in transformers."""
    if weights is None:
        return x
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + weights.eps)
    if weights.offset:
        return (normed * (1 + weights.weight.float())).to(x.dtype)
    return weights.weight * normed.to(x.dtype)


def head_norm(x: Tensor, weights: NormWeights | None, head_dim: int) -> Tensor:
    """Normalise `[..., H D]` per head, or all heads together if the weight has their size."""
    if weights is None or len(weights.weight) != head_dim:
        return norm(x, weights)
    return norm(x.unflatten(-1, (-1, head_dim)), weights).flatten(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, rotation: Rotation) -> Tensor:
    """Apply rotary embedding with angles `[B, N, 1, R]` to the first R dimensions of `[B, N, H, D]`."""
    size = cos.shape[-1]
    turned, kept = x[..., :size], x[..., size:]
    if rotation == "half":
        first, second = turned.chunk(2, -1)
        swapped = torch.cat([-second, first], -1)
    else:
        cos, sin = (y[..., : size // 2].repeat_interleave(2, -1) for y in (cos, sin))
        swapped = torch.stack([-turned[..., 1::2], turned[..., ::2]], -1).flatten(-2)
    turned = turned * cos + swapped * sin
    return turned if size == x.shape[-1] else torch.cat([turned, kept], -1)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply the gate's activation function."""
    if activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def add(hidden: Tensor, added: Tensor, scale: float | None) -> Tensor:
    """Add to the residual stream."""
    return hidden + (added if scale is None else added * scale)
