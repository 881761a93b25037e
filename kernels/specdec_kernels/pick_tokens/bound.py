"""Bounds of top-k and top-p: one program per row finds the rank of the least token that is kept.

    rank    the score's bits in integer order (63..32), then the id (31..0): all ranks of a row differ
    weight  1 per token for top-k, exp(score - highest) for top-p

The lowest ranks are removed as long as the sum of their weights is at most a limit: V - k, or (1 - p) of the mass that
top-k kept. The first rank beyond is found by bisection. Each pass reads the row, sums the weights of all ranks up to the
middle, and moves one end to the next rank that a token has, so gaps between scores cost nothing. Sums have a fixed order,
in which float32 addition is monotone, so the bisection is exact.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.ordered_keys import NO_KEY, key_number, make_key

# Eight tokens per thread are enough bytes in flight to hide the latency of L2, where the row is after the first pass.
BLOCK_V = 4096
WARPS = 16
ABOVE_ALL = tl.constexpr(2**63 - 1)


@triton.jit
def read_scores(row_ptr, o_v, m_v, temperature):
    """Read logits (-inf beyond the end) and divide them by the temperature."""
    scores = tl.load(row_ptr + o_v, mask=m_v, other=float("-inf")).to(tl.float32)
    if temperature is not None:
        scores = tl.div_rn(scores, tl.full([1], temperature, tl.float32))
    return scores


@triton.jit
def rank(scores, ids):
    """Return ranks with the order of a stable ascending sort."""
    return make_key(scores, 0xFFFFFFFF - ids.to(tl.int64))


@triton.jit
def _weigh(
    row_ptr, vocabulary, temperature, floor, middle, highest, COUNT: tl.constexpr, BLOCK_V: tl.constexpr
):  # fmt: skip
    """Return the weight of ranks from `floor` to `middle`, the largest rank among them, and the smallest above."""
    weight = tl.zeros([BLOCK_V], tl.float32)
    below, above = tl.full([BLOCK_V], NO_KEY, tl.int64), tl.full([BLOCK_V], ABOVE_ALL, tl.int64)
    for first in range(0, vocabulary, BLOCK_V):
        o_v = first + tl.arange(0, BLOCK_V)
        m_v = o_v < vocabulary
        scores = read_scores(row_ptr, o_v, m_v, temperature)
        ranks = rank(scores, o_v)
        m_low = m_v & (ranks <= middle)
        each = 1.0
        if not COUNT:
            each = tl.exp(scores - highest)
        weight += tl.where(m_low & (ranks >= floor), each, 0.0)
        below = tl.maximum(below, tl.where(m_low, ranks, NO_KEY))
        above = tl.minimum(above, tl.where(m_v & (ranks > middle), ranks, ABOVE_ALL))
    return tl.sum(weight), tl.max(below), tl.min(above)


@triton.jit
def _first_beyond(
    row_ptr, vocabulary, temperature, floor, top, limit, highest, COUNT: tl.constexpr, BLOCK_V: tl.constexpr
):  # fmt: skip
    """Find the least rank up to which the weights from `floor` on exceed `limit`; `top` if there is none."""
    low, high = floor, top
    while low < high:
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, which does not overflow
        weight, below, above = _weigh(
            row_ptr, vocabulary, temperature, floor, middle, highest, COUNT, BLOCK_V
        )
        low = tl.where(weight <= limit, above, low)
        high = tl.where(weight <= limit, high, below)
    return low


@triton.jit(do_not_specialize=["removed_tokens"])
def _bounds_kernel(
    logits_ptr,
    bounds_ptr,
    stride,
    vocabulary,
    temperature,
    removed_tokens,
    removed_mass,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    floor = tl.full([], NO_KEY, tl.int64)
    everything = tl.full([], ABOVE_ALL, tl.int64)
    _, top, _ = _weigh(row_ptr, vocabulary, temperature, floor, everything, 0.0, True, BLOCK_V)
    highest = key_number(top)
    if removed_tokens is not None:
        limit = removed_tokens.to(tl.float32)
        least = _first_beyond(
            row_ptr, vocabulary, temperature, floor, top, limit, highest, True, BLOCK_V
        )
        floor = least & -0x100000000  # includes equal scores with any id
    if removed_mass is not None:
        mass, _, _ = _weigh(
            row_ptr, vocabulary, temperature, floor, everything, highest, False, BLOCK_V
        )
        floor = _first_beyond(
            row_ptr, vocabulary, temperature, floor, top, removed_mass * mass, highest, False, BLOCK_V
        )  # fmt: skip
    tl.store(bounds_ptr + row, floor)


def launch_bounds(
    logits: Tensor, temperature: float | None, top_k: int | None, top_p: float | None
) -> Tensor:
    """Find the least rank that is kept in each row.

    Args:
        logits: `[R, V]`, the last dimension contiguous; V up to 2^24, so that float32 counts exactly.
        temperature: divisor, or None.
        top_k: 1 to V - 1, or None.
        top_p: 0 to below 1, or None.

    Returns:
        `[R]` int64.
    """
    rows, vocabulary = logits.shape
    bounds = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _bounds_kernel[(rows,)](
        logits,
        bounds,
        logits.stride(0),
        vocabulary,
        temperature,
        None if top_k is None else vocabulary - top_k,
        None if top_p is None else 1 - top_p,
        BLOCK_V=min(BLOCK_V, triton.next_power_of_2(vocabulary)),
        num_warps=WARPS,
    )
    return bounds
