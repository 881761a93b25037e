"""The weights of an EAGLE-3 drafter: one decoder layer that reads a token beside what the target made of the text before it.

    states of three layers ─► fuse ─► x ─┬─► hidden_norm ──┐
    the next token ─► embedding ─► embedding_norm ─────────┴─► attention ─► + x ─► mlp_norm ─► MLP ─► + ─► y
                                                                             y ─► output_norm ─► output, over a draft vocabulary

`y` takes the place of `x` where the target has not been yet: at drafted tokens.
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

from specdec_kernels.early_exit.reference import rms_norm, rotate, rotation

from .ranges import check_between

AUTHORS_LAYERS = 3
"""How many layers are fused where none are named."""
STRETCHING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
FEWEST_LAYERS = 7
"""Of a target in which the authors' choice names three."""


@dataclass(frozen=True, slots=True)
class Eagle3Config:
    """The shape of an EAGLE-3 drafter, and how it drafts."""

    hidden_size: int
    """E, of the draft layer; as wide as the target's embedding, which it reads."""
    intermediate_size: int
    """Of its MLP."""
    heads: int
    """H, query heads."""
    kv_heads: int
    """G, key and value heads, a divisor of H."""
    head_dim: int
    """D, even."""
    target_size: int | None = None
    """Width of the target's layers where it is another than E."""
    layers: tuple[int, ...] | None = None
    """Layers of the target whose inputs are fused, ascending from 1 on; None for the authors' low, middle and high one."""
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    """Base of the rotary frequencies; 10000 in the authors' code unless the drafter's configuration says otherwise."""
    rope_scaling: Mapping[str, float] | None = None
    """How frequencies are stretched, as Llama 3.1 does it: a number for each of `STRETCHING`; None for not at all."""
    norm_residual: bool = False
    """Whether the layer adds to the normed state instead of the state; `norm_before_residual` in the library speculators."""
    depth: int = 6
    """Most tokens of a path, 1 to 16; the authors' `depth` and one."""
    width: int | None = None
    """Beams, and continuations of each, 1 to 16; None for what this machine makes of it. The authors' is 10."""
    min_prob: float | None = None
    """Probability under which a node is not worth verifying, 0 to 1; None for what this machine makes of it."""
    min_step_prob: float | None = None
    """Probability that a draft holds so far under which it ends, 0 to 1, None likewise; on CPUs, where looking costs nothing."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        if self.layers is not None:
            # A file has lists.
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
        check_between(self, 1, 16, "depth", "width")
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
        """How many layers are fused."""
        return AUTHORS_LAYERS if self.layers is None else len(self.layers)

    def layers_of(self, count: int) -> tuple[int, ...]:
        """Name the layers whose inputs are fused, in a target of so many.

        Raises:
            ValueError: if the target has no such layer, or too few for the authors' choice.
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


class RMSNorm(nn.RMSNorm):
    """The norm with statistics in float32 at least, and the weight in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Norm `[..., E]`."""
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)


class Eagle3Model(nn.Module):
    """The draft layer, what it reads and its head."""

    def __init__(self, config: Eagle3Config, draft_size: int) -> None:
        """Make one with random weights; its head has `draft_size` rows."""
        super().__init__()
        self.config = config
        width, inner = config.hidden_size, config.intermediate_size
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim

        def norm() -> RMSNorm:
            return RMSNorm(width, eps=config.rms_norm_eps)

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False)

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
        """Norm embeddings of tokens and the states before them, `[..., E]` each; returns `[..., 2E]`."""
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
        """Compute keys and values alone; arguments and results as in `project`."""
        return self._keys_values(joined, self._angles(joined, positions))

    def _keys_values(self, joined: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        k, v = (
            rearrange(projection(joined), "b n (g d) -> b n g d", d=self.config.head_dim)
            for projection in (self.k_proj, self.v_proj)
        )
        return rotate(k, *angles).transpose(1, 2), v.transpose(1, 2)

    def finish(self, joined: Tensor, hidden: Tensor, attended: Tensor) -> Tensor:
        """Compute what follows attention: the state that the next token is read with.

        Args:
            joined: `[B, N, 2E]`, what attention read.
            hidden: `[B, N, E]`, the states in it.
            attended: `[B, N, H, D]`, what attention gave.

        Returns:
            `[B, N, E]`, not normed.
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
    """Lower the rotary frequencies `[D / 2]` of waves that are long beside the positions of a first training, as Llama 3.1 does.

    Args:
        frequencies: of the base.
        scaling: a number for each of `STRETCHING`.
    """
    factor, low, high, positions = (scaling[name] for name in STRETCHING)
    waves = positions * frequencies / (2 * math.pi)  # how often each turns within them
    kept = ((waves - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)
