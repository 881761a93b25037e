"""EAGLE-3's draft model: one decoder layer on a token's embedding and the target's hidden state before it.

    states of three layers ─► fuse ─► x ─┬─► hidden_norm ──┐
    the next token ─► embedding ─► embedding_norm ─────────┴─► attention ─► + x ─► mlp_norm ─► MLP ─► + ─► y
                                                                             y ─► output_norm ─► output, over a draft vocabulary

At drafted tokens, for which the target has no hidden state yet, `y` replaces `x`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from specdec_kernels.early_exit.reference import rotate, rotation

from .ranges import check_between
from .rms_norm import RMSNorm

AUTHORS_LAYERS = 3
"""Number of fused layers by default."""
STRETCHING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
FEWEST_LAYERS = 7
"""Minimum number of target layers for the authors' choice of three different ones."""


@dataclass(frozen=True, slots=True)
class Eagle3Config:
    """Shape of an EAGLE-3 draft model and its draft settings."""

    hidden_size: int
    """E of the draft layer; the width of the target's embedding unless the model has its own."""
    intermediate_size: int
    """Width of the MLP."""
    heads: int
    """H, query heads."""
    kv_heads: int
    """G, key and value heads, a divisor of H."""
    head_dim: int
    """D, even."""
    target_size: int | None = None
    """Hidden size of the target's layers if it differs from E."""
    layers: tuple[int, ...] | None = None
    """Target layers whose inputs are fused, ascending, from 1; None: the authors' low, middle and high layer."""
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    """RoPE base; 10000 in the authors' code unless the head's configuration sets another."""
    rope_scaling: Mapping[str, float] | None = None
    """RoPE scaling as in Llama 3.1: a number for each of `STRETCHING`; None for no scaling."""
    norm_residual: bool = False
    """Whether the residual is the normalised state; `norm_before_residual` in the library speculators."""
    own_embedding: bool = False
    """Whether the model has an embedding `[V, E]`; False for the target's."""
    passes: int = 7
    """Passes of the training-time test, 1 to 16; 7 in the authors' code."""
    depth: int = 6
    """Maximum draft length, 1 to 16; the authors' `depth` + 1."""
    width: int | None = None
    """Beams, and continuations per beam, 1 to 16; 10 in the authors' code; None: computed from the cost table."""
    min_prob: float | None = None
    """Minimum cumulative probability of a proposed node, 0 to 1; None: computed from the cost table."""
    min_step_prob: float | None = None
    """Minimum summed probability of the beams for another step, 0 to 1; None: computed. Used on CPUs only."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        if self.layers is not None:
            # From JSON it is a list.
            object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
        for name in ("hidden_size", "intermediate_size", "heads", "kv_heads"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.target_size is not None and self.target_size < 1:
            raise ValueError(f"target_size: expected at least 1, got {self.target_size}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads: expected a divisor of {self.heads} heads, got {self.kv_heads}"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim: expected an even number from 2 on, got {self.head_dim}")
        for name in ("rms_norm_eps", "rope_theta"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{name}: expected above 0, got {value}")
        if self.rope_scaling is not None and self.rope_scaling.keys() != set(STRETCHING):
            raise ValueError(
                f"rope_scaling: expected {', '.join(STRETCHING)}, got {', '.join(self.rope_scaling)}"
            )
        layers = self.layers
        if layers is not None and not (layers and layers[0] > 0 and _ascend(layers)):
            raise ValueError(f"layers: expected ascending numbers from 1 on, got {list(layers)}")
        check_between(self, 1, 16, "passes", "depth", "width")
        check_between(self, 0, 1, "min_prob", "min_step_prob")

    @classmethod
    def beside(
        cls,
        target: Any,
        layers: tuple[int, ...] | None,
        *,
        intermediate_size: int | None = None,
        **settings: Any,
    ) -> Eagle3Config:
        """Shape a drafter like a layer of the model that has this library configuration.

        Args:
            target: the model's configuration; its embedding is as wide as its layers.
            layers: as in the fields; None for the authors' choice, which is written down.
            intermediate_size: of the MLP; None for the target's.
            settings: how to draft.

        Raises:
            ValueError: if a value is out of range, or the target has no such layers.
        """
        heads, width = target.num_attention_heads, target.hidden_size
        inner = intermediate_size or getattr(target, "intermediate_size", None) or 4 * width
        config = cls(
            hidden_size=width,
            intermediate_size=inner,
            heads=heads,
            kv_heads=getattr(target, "num_key_value_heads", None) or heads,
            head_dim=getattr(target, "head_dim", None) or width // heads,
            layers=layers,
            **settings,
        )
        return replace(config, layers=config.layers_of(target.num_hidden_layers))

    @property
    def fused(self) -> int:
        """Number of fused layers."""
        return AUTHORS_LAYERS if self.layers is None else len(self.layers)

    def layers_of(self, count: int) -> tuple[int, ...]:
        """Return the fused layers of a target with `count` layers.

        Raises:
            ValueError: if a layer does not exist, or there are too few layers for the authors' choice.
        """
        if self.layers is None:
            if count < FEWEST_LAYERS:
                raise ValueError(
                    f"layers: expected some that are named, as the target has {count} layers and the authors' choice of "
                    f"three takes {FEWEST_LAYERS}, got none"
                )
            return 2, count // 2, count - 3
        if self.layers[-1] >= count:
            raise ValueError(
                f"layers: expected 1 to {count - 1} of the target's {count} layers, got {list(self.layers)}"
            )
        return self.layers


def _ascend(numbers: Sequence[int]) -> bool:
    return list(numbers) == sorted(set(numbers))


class Eagle3Model(nn.Module):
    """Fusion, draft layer and head."""

    embedding: nn.Embedding | None

    def __init__(self, config: Eagle3Config, draft_size: int, vocabulary_size: int) -> None:
        """Create a model with random weights, a head of `draft_size` rows and perhaps an embedding of `vocabulary_size`."""
        super().__init__()
        self.config = config
        width, inner = config.hidden_size, config.intermediate_size
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim

        def norm() -> RMSNorm:
            return RMSNorm(width, eps=config.rms_norm_eps)

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False)

        self.embedding = nn.Embedding(vocabulary_size, width) if config.own_embedding else None
        self.fuse = linear(config.fused * (config.target_size or width), width)
        self.embedding_norm, self.hidden_norm = norm(), norm()
        self.q_proj = linear(2 * width, queries)
        self.k_proj = linear(2 * width, keys)
        self.v_proj = linear(2 * width, keys)
        self.o_proj = linear(queries, width)
        self.mlp_norm = norm()
        self.gate_proj, self.up_proj = linear(width, inner), linear(width, inner)
        self.down_proj = linear(inner, width)
        self.output_norm = norm()
        self.output = linear(width, draft_size)

    def join(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """Normalise and concatenate embeddings and the hidden states before them, `[..., E]` each, to `[..., 2E]`."""
        return torch.cat([self.embedding_norm(embedded), self.hidden_norm(hidden)], -1)

    def project(self, joined: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values.

        Args:
            joined: `[B, N, 2E]`.
            positions: `[B, N]` int64, or broadcastable.

        Returns:
            Queries `[B, N, H, D]` as `tree_attention` takes them, keys and values `[B, G, N, D]` as caches hold them.
        """
        angles = self._angles(joined, positions)
        q = rearrange(self.q_proj(joined), "b n (h d) -> b n h d", d=self.config.head_dim)
        return rotate(q, *angles), *self._keys_values(joined, angles)

    def keys_values(self, joined: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values only; arguments and results as in `project`."""
        return self._keys_values(joined, self._angles(joined, positions))

    def _keys_values(self, joined: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        k, v = (
            rearrange(projection(joined), "b n (g d) -> b n g d", d=self.config.head_dim)
            for projection in (self.k_proj, self.v_proj)
        )
        return rotate(k, *angles).transpose(1, 2), v.transpose(1, 2)

    def finish(self, joined: Tensor, hidden: Tensor, attended: Tensor) -> Tensor:
        """Compute the layer's output behind attention.

        Args:
            joined: `[B, N, 2E]`, input of attention.
            hidden: `[B, N, E]`, hidden states before normalisation.
            attended: `[B, N, H, D]`, output of attention.

        Returns:
            `[B, N, E]`, before the output norm.
        """
        if self.config.norm_residual:
            hidden = joined[..., hidden.shape[-1] :]
        hidden = hidden + self.o_proj(rearrange(attended, "b n h d -> b n (h d)"))
        normed = self.mlp_norm(hidden)
        gated = F.silu(self.gate_proj(normed)) * self.up_proj(normed)
        out: Tensor = hidden + self.down_proj(gated)
        return out

    def _angles(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.rope_scaling is None:
            return rotation(positions, config.head_dim, config.rope_theta, like.dtype)
        exponents = torch.arange(0, config.head_dim, 2, device=positions.device) / config.head_dim
        frequencies = stretched(config.rope_theta**-exponents, config.rope_scaling)
        angles = positions[..., None].float() * frequencies
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def stretched(frequencies: Tensor, scaling: Mapping[str, float]) -> Tensor:
    """Scale the RoPE frequencies `[D / 2]` with long wavelengths, as in Llama 3.1.

    Args:
        frequencies: unscaled.
        scaling: a number for each of `STRETCHING`.
    """
    factor, low, high, positions = (scaling[name] for name in STRETCHING)
    waves = positions * frequencies / (2 * math.pi)  # turns of each within the original context
    kept = ((waves - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)
