"""Merges splits, one program per query head of a node, in the order of splits, so that results are deterministic.

    partial [splits, rows, D], stats [splits, 2, rows]; a row's splits: shared ones, then its own

Used after the main kernel and after the kernel of shared prefixes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .loops import FLOOR, LOG2_E, cache_row, own_prefix, shared_prefix, tokens_per_split

# Splits read at a time: 8 rows of 128 float32 numbers keep 4 KB in flight per program. A constant, so that the order of
# sums does not depend on the largest possible number of splits.
BLOCK_S = 8


@triton.jit(do_not_specialize=["window", "rows", "rows_of_one", "shared_splits", "splits"])
def _merge_splits_kernel(
    partial_ptr, stats_ptr, out_ptr, lse_ptr,
    prefix_ptr, cache_rows_ptr, shared_rows_ptr, shared_lens_ptr,
    window, rows, rows_of_one, shared_splits, splits,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i_b = row // rows_of_one
    prefix = tl.load(prefix_ptr + i_b).to(tl.int32)
    shared = shared_prefix(shared_rows_ptr, shared_lens_ptr, i_b)
    length = prefix - own_prefix(prefix, shared, window)
    # Non-empty splits; the first of a row's own always counts, as it may contain the tree.
    n_own = tl.maximum(tl.cdiv(length, tokens_per_split(length, splits)), 1)
    n_shared = 0
    if shared_rows_ptr is not None:
        n_shared = tl.cdiv(shared, tokens_per_split(shared, shared_splits))
    # Padding has no parts, and its results are zeros.
    n_parts = tl.where(cache_row(cache_rows_ptr, i_b) < 0, 0, n_shared + n_own)

    o_s, o_d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    top = tl.full([1], FLOOR, tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for first in range(0, n_parts, BLOCK_S):
        i_s = first + o_s
        m_s = i_s < n_parts
        split = tl.where(i_s < n_shared, i_s, i_s - n_shared + shared_splits).to(tl.int64)
        tops = tl.load(stats_ptr + split * 2 * rows + row, mask=m_s, other=FLOOR)
        totals = tl.load(stats_ptr + (split * 2 + 1) * rows + row, mask=m_s, other=0.0)
        parts = tl.load(
            partial_ptr + (split * rows + row)[:, None] * D + o_d[None, :],
            mask=m_s[:, None] & (o_d < D)[None, :],
            other=0.0,
        )
        highest = tl.maximum(top, tl.max(tops, 0))
        keep, weights = tl.exp2(top - highest), tl.exp2(tops - highest)
        acc = acc * keep + tl.sum(parts * weights[:, None], 0)
        total = total * keep + tl.sum(totals * weights, 0)
        top = highest

    some = tl.where(total == 0, 1.0, total)
    tl.store(out_ptr + row * D + o_d, (acc / some).to(out_ptr.dtype.element_ty), mask=o_d < D)
    if lse_ptr is not None:
        lse = tl.where(total == 0, float("-inf"), (top + tl.log2(some)) / LOG2_E)
        tl.store(lse_ptr + row + tl.arange(0, 1), lse)


def launch_merge(
    partial: Tensor,
    stats: Tensor,
    out: Tensor,
    lse: Tensor | None,
    trees: tuple[Tensor | None, ...],
    window: int,
    shared_splits: int,
) -> None:
    """Launch the kernel into `out` `[B, N, H, D]` and `lse` `[B, N, H]`; `trees` in the kernel's order of arguments."""
    _, nodes, heads, size = out.shape
    splits, rows, _ = partial.shape
    _merge_splits_kernel[(rows,)](
        partial,
        stats,
        out,
        lse,
        *trees,
        window,
        rows,
        nodes * heads,
        shared_splits,
        splits - shared_splits,
        D=size,
        BLOCK_D=triton.next_power_of_2(size),
        BLOCK_S=BLOCK_S,
        num_warps=1 if size <= 128 else 2,  # a lane reads 16 bytes of each split
    )
