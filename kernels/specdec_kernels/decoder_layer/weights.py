"""One decoder layer as data: weights, and settings in which model families differ.

x ─┬─► [norm] ─► q k v ─► [norms] ─► rotation ─► attention ─► o ─► [norm] ─┬─► + ─► x'
└───────────────────────────────────────────────────────────────────────┘
x' ─┬─► [norm] ─► activation(gate) · up ─► down ─► [norm] ─┬─► + ─► x''
└──────────────────────────────────────────────────────┘
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Activation = Literal["silu", "gelu", "gelu_tanh"]
Rotation = Literal["half", "interleaved"]


class NormWeights(NamedTuple):
    """An RMSNorm over the last dimension of its weight."""

    weight: Tensor
    """`[E]`; for queries and keys `[D]`, the same for each head, or `[H D]` for all heads together."""
    eps: float
    """Added to mean squares."""
    offset: bool = False
    """True: multiply by 1 + weight before rounding (Gemma). False: multiply by weight after it (Llama)."""


class LinearWeights(NamedTuple):
    """A linear layer, or several with the same input, whose outputs are concatenated."""

    weights: tuple[Tensor, ...]
    """Each `[out, in]`."""
    biases: tuple[Tensor, ...] = ()
    """Each `[out]`; empty, or as many as weights."""


class LayerWeights(NamedTuple):
    """A decoder layer with a gated feed-forward part; norms that a family lacks are None."""

    heads: int
    """H, query heads."""
    kv_heads: int
    """G, key and value heads; a divisor of H."""
    head_dim: int
    """D."""
    qkv: LinearWeights
    """`[(H + 2 G) D, E]` in total, as one matrix or three."""
    output: LinearWeights
    """`[E, H D]`."""
    gate: LinearWeights
    """`[I, E]`."""
    up: LinearWeights
    """`[I, E]`."""
    down: LinearWeights
    """`[E, I]`."""
    activation: Activation
    scale: float
    """Factor of attention scores."""
    input_norm: NormWeights | None = None
    """Norm before attention."""
    attention_norm: NormWeights | None = None
    """Norm of the attention's output (Gemma 2, OLMo 2)."""
    mlp_norm: NormWeights | None = None
    """Norm before the feed-forward part."""
    output_norm: NormWeights | None = None
    """Norm of the feed-forward part's output."""
    q_norm: NormWeights | None = None
    """Norm of queries, per head (Qwen 3) or of all heads together (OLMo 2)."""
    k_norm: NormWeights | None = None
    """Norm of keys."""
    rotation: Rotation | None = "half"
    """Which dimensions of a head are rotated together; None for a layer without rotary embedding (SmolLM 3)."""
    softcap: float | None = None
    """Soft-cap of attention scores (Gemma 2)."""
    window: int | None = None
    """Sliding window in positions."""
    residual_scale: float | None = None
    """Factor of both parts' outputs (Granite)."""
