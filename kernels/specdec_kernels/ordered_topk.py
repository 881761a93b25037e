"""Top-k whose order is fixed: larger values first, lower index first among equals."""

from __future__ import annotations

import torch
from torch import Tensor

# Entries looked at beyond the k wanted ones: enough for the ties that bfloat16 brings at the border.
MARGIN = 8


def ordered_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Take the k largest entries of each row in one fixed order, which `torch.topk` leaves open.

    Args:
        values: `[..., V]` float, NaN above all numbers; read by the host, so for CPU and MPS.
        k: 1 to V.

    Returns:
        Values `[..., k]` in descending order and indices `[..., k]` int64, ascending among equal values.
    """
    size = values.shape[-1]
    if k == 1:
        best = values.max(-1, keepdim=True)  # the first of equals
        return best.values, best.indices
    if torch.compiler.is_compiling():  # a graph cannot look at ties
        near, at = values.sort(dim=-1, descending=True, stable=True)
        return near[..., :k], at[..., :k]
    near, at = values.topk(min(k + MARGIN, size))
    if near.shape[-1] < size and not bool((near[..., -1] < near[..., k - 1]).all()):
        near, at = values.sort(
            dim=-1, descending=True, stable=True
        )  # more ties than the margin holds
        return near[..., :k], at[..., :k]
    at, order = at.sort(dim=-1)
    near, again = near.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return near[..., :k], at.gather(-1, again)[..., :k]
