"""Attention to prefixes shared by several trees; a program computes some rows of one K/V head, of all trees at once.

    row x of a group's K/V head: member x // (N * GROUP), then node and query head as in `kernel.py`

Batch rows with the same cache row and length form a group, whose members each program determines itself: batch row b of
rank j among k members computes tiles j * tiles, j * tiles + 1, ... of the group's k * N * GROUP rows; programs beyond
them return at once. One tile may contain rows of several trees.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .loops import FLOOR, attend, cache_row, score_factors, store_partial, tokens_per_split

# Batch rows compared at a time; a warp's worth.
BLOCK_B = tl.constexpr(32)


@triton.jit
def _are_members(cache_rows_ptr, rows_ptr, lens_ptr, o_b, row, length, batch):
    """Return which batch rows share this row and length; padding does not."""
    m_b = o_b < batch
    same = tl.load(rows_ptr + o_b, mask=m_b, other=-1) == row
    same = same & (tl.load(lens_ptr + o_b, mask=m_b, other=-1) == length)
    if cache_rows_ptr is not None:
        same = same & (tl.load(cache_rows_ptr + o_b, mask=m_b, other=-1) >= 0)
    return same


@triton.jit
def _rank_and_size(cache_rows_ptr, rows_ptr, lens_ptr, i_b, row, length, batch):
    """Return a row's rank in its group, and the group's size."""
    rank, size = 0, 0
    for first in range(0, batch, BLOCK_B):
        o_b = first + tl.arange(0, BLOCK_B)
        same = _are_members(cache_rows_ptr, rows_ptr, lens_ptr, o_b, row, length, batch)
        size += tl.sum(same.to(tl.int32))
        rank += tl.sum((same & (o_b < i_b)).to(tl.int32))
    return rank, size


@triton.jit
def _member_rows(cache_rows_ptr, rows_ptr, lens_ptr, member, row, length, batch):
    """Return the batch row of each member, by rank."""
    seen, found = 0, tl.zeros_like(member)
    for first in range(0, batch, BLOCK_B):
        o_b = first + tl.arange(0, BLOCK_B)
        same = _are_members(cache_rows_ptr, rows_ptr, lens_ptr, o_b, row, length, batch)
        rank = seen + tl.cumsum(same.to(tl.int32)) - 1
        is_it = same[None, :] & (rank[None, :] == member[:, None])
        found += tl.sum(tl.where(is_it, o_b[None, :], 0), 1)
        seen += tl.sum(same.to(tl.int32))
    return found


@triton.jit(do_not_specialize=["window", "batch", "nodes", "splits", "rows_of_all"])
def _shared_prefix_kernel(
    q_ptr, k_ptr, v_ptr, partial_ptr, stats_ptr,
    prefix_ptr, depth_ptr, cache_rows_ptr, shared_rows_ptr, shared_lens_ptr,
    scale, softcap, window, batch, nodes, splits, rows_of_all,
    stride_qb, stride_qn, stride_qh,
    stride_kb, stride_kg, stride_ks,
    stride_vb, stride_vg, stride_vs,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    FIXED: tl.constexpr,
):  # fmt: skip
    i_split = tl.program_id(1)
    tiles = tl.cdiv(nodes * GROUP, BLOCK_M)
    i_g = tl.program_id(0) // (batch * tiles)
    i_b = tl.program_id(0) // tiles % batch
    row, length = tl.load(shared_rows_ptr + i_b), tl.load(shared_lens_ptr + i_b)
    if (row < 0) | (length <= 0) | (cache_row(cache_rows_ptr, i_b) < 0):
        return
    rank, size = _rank_and_size(
        cache_rows_ptr, shared_rows_ptr, shared_lens_ptr, i_b, row, length, batch
    )
    i_m = rank * tiles + tl.program_id(0) % tiles
    stop = length.to(tl.int32)
    chunk = tokens_per_split(stop, splits)
    start = i_split * chunk
    rows = size * nodes * GROUP
    if (start >= stop) | (i_m * BLOCK_M >= rows):
        return

    o_r = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_r = o_r < rows
    o_r = tl.minimum(o_r, rows - 1)  # rows beyond the last repeat it
    member, o_r = o_r // (nodes * GROUP), o_r % (nodes * GROUP)
    node, head = o_r // GROUP, i_g * GROUP + o_r % GROUP
    o_b = _member_rows(
        cache_rows_ptr, shared_rows_ptr, shared_lens_ptr, member, row, length, batch
    ).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    q_rows = q_ptr + o_b * stride_qb + node.to(tl.int64) * stride_qn + head.to(tl.int64) * stride_qh
    q = tl.load(q_rows[:, None] + o_d[None, :], mask=(o_d < D)[None, :], other=0.0)
    k_ptr += row * stride_kb + i_g.to(tl.int64) * stride_kg
    v_ptr += row * stride_vb + i_g.to(tl.int64) * stride_vg

    tree = o_b * nodes
    edges = tl.zeros([BLOCK_M], tl.int32)
    if WINDOWED:
        position = tl.load(prefix_ptr + o_b) + tl.load(depth_ptr + tree + node)
        edges = position.to(tl.int32) - window + 1
    inner, factor = score_factors(scale, softcap, CAPPED)
    top = tl.full([BLOCK_M], FLOOR, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    acc, top, total = attend(
        acc, top, total, q, k_ptr, v_ptr, stride_ks, stride_vs,
        start, tl.minimum(start + chunk, stop), edges, None, None, 0,
        inner, factor, D, BLOCK_N, BLOCK_D, CAPPED, WINDOWED, FIXED,
    )  # fmt: skip
    store_partial(
        partial_ptr, stats_ptr, acc, top, total, i_split, (tree + node) * HEADS + head, m_r,
        rows_of_all, D, BLOCK_D,
    )  # fmt: skip


def launch_shared_prefix(
    q: Tensor,
    caches: tuple[Tensor, Tensor],
    parts: tuple[Tensor | None, Tensor | None],
    trees: tuple[Tensor | None, ...],
    scalars: tuple[float, float, int],
    splits: int,
    strides: tuple[int, ...],
    constants: dict[str, Any],
) -> None:
    """Write the first `splits` of `parts`; arguments from the main kernel's launcher."""
    batch, nodes, heads, _ = q.shape
    # Enough programs for any grouping: a group of k rows has k * tiles tiles.
    tiles = triton.cdiv(nodes * constants["GROUP"], constants["BLOCK_M"])
    kv_heads = heads // constants["GROUP"]
    _shared_prefix_kernel[(kv_heads * batch * tiles, splits)](
        q,
        *caches,
        *parts,
        *trees,
        *scalars,
        batch,
        nodes,
        splits,
        batch * nodes * heads,
        *strides,
        **constants,
    )
