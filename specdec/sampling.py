"""Sampling with counter-based noise.

The sampled token maximises log-probability plus Gumbel noise, where the noise is a function of seed, stream, position
and token id. The token at a position therefore does not depend on what is drafted or verified beside it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec_kernels import pick_tokens


def most_likely(logits: Tensor) -> Tensor:
    """Return the most likely token of `[..., V]` logits, the lowest id among equals."""
    return logits.max(
        -1
    ).indices  # same result as argmax, which is five times slower in bf16 on CPUs


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters."""

    seed: int
    """0 to 2**64 - 1."""
    streams: Tensor
    """`[R]` int64, one number per text, 0 to 2**32 - 1; rows with equal seed and stream have equal noise."""
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def draw(
        self, logits: Tensor, rows: Tensor, positions: Tensor, *, processed: bool = False
    ) -> Tensor:
        """Sample one token per row of logits.

        Args:
            logits: `[R, V]`, the target's logits, or processed scores.
            rows: `[R]` int64, indices of the texts.
            positions: `[R]` int64, positions of the tokens in their texts.
            processed: whether temperature, top-k and top-p are already applied.
        """
        how = Sampling(self.seed, self.streams) if processed else self
        return pick_tokens(
            logits,
            seed=self.seed,
            streams=self.streams[rows],
            positions=positions,
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
        )


def new_sampling(
    seed: int | None, streams: Sequence[int], device: torch.device, **settings: Any
) -> Sampling:
    """Create sampling parameters after checking seed and streams.

    Args:
        seed: 0 to 2**64 - 1; None draws one from torch's default generator.
        streams: one number per text, 0 to 2**32 - 1.
        device: the target's.
        settings: `temperature`, `top_k`, `top_p`.

    Raises:
        TypeError: if the seed or a stream is not an integer.
        ValueError: if the seed or a stream is out of range.
    """
    try:
        seed = int(torch.randint(1 << 62, ())) if seed is None else operator.index(seed)
    except TypeError as error:
        raise TypeError(f"seed: expected an integer, got {seed!r}") from error
    try:
        streams = [operator.index(stream) for stream in streams]
    except TypeError as error:
        raise TypeError(f"streams: expected integers, got {streams!r}") from error
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed: expected 0 to 2**64 - 1, got {seed}")
    if not all(0 <= stream < 1 << 32 for stream in streams):
        raise ValueError(f"streams: expected numbers from 0 to 2**32 - 1, got {list(streams)}")
    return Sampling(seed, torch.tensor(streams, device=device), **settings)
