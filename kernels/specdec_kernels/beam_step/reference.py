"""One step of beam search: the best continuations of all beams become the next beams."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..ordered_topk import ordered_topk


class Beams(NamedTuple):
    """The W' next beams of each row, best first; among equals earlier beam, then more likely token."""

    scores: Tensor
    """`[B, W']` float32, cumulative log-probability."""
    parents: Tensor
    """`[B, W']` int64, index of the beam that each one continues."""
    tokens: Tensor
    """`[B, W']` int64."""


def beam_step_reference(scores: Tensor, log_probs: Tensor, ids: Tensor, width: int) -> Beams:
    """Reference implementation; arguments as in `beam_step`."""
    count = ids.shape[2]
    totals = (scores[:, :, None] + log_probs).flatten(1)  # [B, W * K]
    best, at = ordered_topk(totals, min(width, totals.shape[1]))
    return Beams(best, at.div(count, rounding_mode="floor"), ids.flatten(1).gather(1, at))
