"""Top-k in a fixed order: larger values first, among equals the lower index first."""

from __future__ import annotations

import torch
from torch import Tensor

# Entries considered beyond the k wanted ones, for ties at the border, which are common in bfloat16.
MARGIN = 8


def ordered_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest entries of each row in a fixed order, which `torch.topk` does not guarantee.

    Args:
        values: `[..., V]` float, NaN above all numbers; the host reads it, so it should be on a CPU or MPS.
        k: 1 to V.

    Returns:
        Values `[..., k]` in descending order and indices `[..., k]` int64, ascending among equal values.
    """
    size = values.shape[-1]
    if k == 1:
        best = values.max(-1, keepdim=True)  # the first among equals
        return best.values, best.indices
    if torch.compiler.is_compiling():  # a graph cannot branch on ties
        near, at = values.sort(dim=-1, descending=True, stable=True)
        return near[..., :k], at[..., :k]
    near, at = values.topk(min(k + MARGIN, size))
    if near.shape[-1] < size and not bool((near[..., -1] < near[..., k - 1]).all()):
        near, at = values.sort(dim=-1, descending=True, stable=True)  # more ties than `MARGIN`
        return near[..., :k], at[..., :k]
    at, order = at.sort(dim=-1)
    near, again = near.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return near[..., :k], at.gather(-1, again)[..., :k]
