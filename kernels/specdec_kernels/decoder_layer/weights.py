"""One decoder layer as data: what it multiplies with, and the few ways in which families differ.

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
    """`[E]`; of heads `[D]`, the same for each, or all of them at once."""
    eps: float
    """Added to mean squares."""
    offset: bool = False
    """Whether the factor is 1 + weight, multiplied before rounding (Gemma), or weight, after it (Llama)."""


class LinearWeights(NamedTuple):
    """A linear layer, or several that read the same input, one after the other."""

    weights: tuple[Tensor, ...]
    """Each `[out, in]`."""
    biases: tuple[Tensor, ...] = ()
    """Each `[out]`; none or as many as weights."""


class LayerWeights(NamedTuple):
    """A decoder layer with gated feed-forward part; norms that a family lacks are None."""

    heads: int
    """H, of queries."""
    kv_heads: int
    """G, a divisor of H."""
    head_dim: int
    """D."""
    qkv: LinearWeights
    """`[(H + 2 G) D, E]` in all, as one or as three."""
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
    """Of attention scores."""
    input_norm: NormWeights | None = None
    """Before attention."""
    attention_norm: NormWeights | None = None
    """Of what attention adds (Gemma 2, OLMo 2)."""
    mlp_norm: NormWeights | None = None
    """Before the feed-forward part."""
    output_norm: NormWeights | None = None
    """Of what the feed-forward part adds."""
    q_norm: NormWeights | None = None
    """Of queries, per head (Qwen 3) or of all at once (OLMo 2)."""
    k_norm: NormWeights | None = None
    """Of keys."""
    rotation: Rotation | None = "half"
    """Which dimensions of a head turn together; None where a layer does not rotate (SmolLM 3)."""
    softcap: float | None = None
    """Of attention scores (Gemma 2)."""
    window: int | None = None
    """Sliding window in positions."""
    residual_scale: float | None = None
    """Factor on what both parts add (Granite)."""
