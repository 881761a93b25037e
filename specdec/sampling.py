"""Sampling with noise that depends on the place alone.

A sampled token is the best of its log-probabilities plus Gumbel noise, and the noise is a function of seed, stream,
position and token. Whatever is drafted, and whatever is verified beside it, the token at a place is the same.
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
    """Take the best token of `[..., V]` logits, the lowest id among equals."""
    return logits.max(-1).indices  # the same as argmax, which is five times slower in bf16 on CPUs


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn."""

    seed: int
    """0 to 2**64 - 1."""
    streams: Tensor
    """`[R]` int64, one number per prompt, 0 to 2**32 - 1: rows of one seed and stream have the same noise."""
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def draw(
        self, logits: Tensor, rows: Tensor, positions: Tensor, *, processed: bool = False
    ) -> Tensor:
        """Draw one token per `[R, V]` logits.

        Args:
            logits: the target's, or processed already.
            rows: `[R]` int64, prompts.
            positions: `[R]` int64, of the tokens in their texts.
            processed: whether temperature, top-k and top-p have been applied.
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
    """Check what noise is made of.

    Args:
        seed: 0 to 2**64 - 1; None for one from torch's default generator.
        streams: one number per prompt, 0 to 2**32 - 1.
        device: the target's.
        settings: `temperature`, `top_k`, `top_p`.

    Raises:
        TypeError: if one is not an integer.
        ValueError: if a number is out of range.
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
