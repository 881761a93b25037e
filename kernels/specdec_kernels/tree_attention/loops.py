"""Device functions of the attention kernels: splitting of prefixes, and the loops over tiles of K and V.

A tile of queries keeps per row the sum of weighted values `acc`, the largest score so far `top` and the sum of
weights `total`. Scores are multiplied by log2(e), so that weights are exp2. Loops update these three.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..device.math import tanh
from . import tiles

# Finite, so that rows that see nothing of a tile do not compute inf - inf.
FLOOR = tl.constexpr(-1e30)
LOG2_E = tl.constexpr(1.4426950408889634)
MIN_SPLIT = tl.constexpr(tiles.MIN_SPLIT)


@triton.jit
def cache_row(rows_ptr, i_b):
    """Return the cache row of a batch row; negative for padding."""
    if rows_ptr is None:
        return i_b
    else:
        return tl.load(rows_ptr + i_b)


@triton.jit
def shared_prefix(rows_ptr, lens_ptr, i_b):
    """Return the number of slots that a row reads from another cache row."""
    if rows_ptr is None:
        return 0
    else:
        return tl.where(tl.load(rows_ptr + i_b) >= 0, tl.load(lens_ptr + i_b), 0).to(tl.int32)


@triton.jit
def own_prefix(prefix, shared, window):
    """Return the first slot that a row reads of its own prefix: after shared slots, within the root's window."""
    return tl.maximum(shared, tl.maximum(prefix - window + 1, 0))


@triton.jit
def tokens_per_split(length, splits):
    """Return the slots per split: a multiple of 64, and so of every tile size; only the last split may be partial."""
    return tl.maximum(MIN_SPLIT, tl.cdiv(tl.cdiv(length, splits), 64) * 64)


@triton.jit
def score_factors(scale, softcap, CAPPED: tl.constexpr):
    """Return the factor of products before tanh, and the final factor of scores."""
    scale, softcap = tl.cast(scale, tl.float32), tl.cast(softcap, tl.float32)
    if CAPPED:
        return scale / softcap, softcap * LOG2_E
    else:
        return scale, scale * LOG2_E


@triton.jit
def _load_slots(ptr, first, stride, m_n, D: tl.constexpr, BLOCK_N: tl.constexpr,
                BLOCK_D: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    o_n, o_d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    at = ptr + tl.cast(first, tl.int64) * stride + (o_n[:, None] * stride + o_d[None, :])
    if MASKED and D < BLOCK_D:
        return tl.load(at, mask=m_n[:, None] & (o_d < D)[None, :], other=0.0)
    elif MASKED:
        return tl.load(at, mask=m_n[:, None], other=0.0)
    elif D < BLOCK_D:
        return tl.load(at, mask=(o_d < D)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def _attend_tile(acc, top, total, q, k_ptr, v_ptr, stride_k, stride_v, first, m_n, visible,
                 inner, factor, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
                 CAPPED: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    k = _load_slots(k_ptr, first, stride_k, m_n, D, BLOCK_N, BLOCK_D, MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if CAPPED:
        scores = tanh(scores * inner)
    candidates = scores * factor
    if MASKED:
        candidates = tl.where(visible, candidates, FLOOR)
    highest = tl.maximum(top, tl.max(candidates, 1))
    exponents = tl.fma(scores, factor, -highest[:, None])
    if MASKED:
        exponents = tl.where(visible, exponents, FLOOR)
    weights = tl.exp2(exponents)
    keep = tl.exp2(top - highest)
    total = tl.fma(total, keep, tl.sum(weights, 1))
    v = _load_slots(v_ptr, first, stride_v, m_n, D, BLOCK_N, BLOCK_D, MASKED)
    acc = tl.dot(weights.to(v.dtype), v, acc * keep[:, None], input_precision="ieee")
    return acc, highest, total


@triton.jit
def attend(acc, top, total, q, k_ptr, v_ptr, stride_k, stride_v, start, stop, edges,
           sets_ptr, depth_ptr, nodes, inner, factor, D: tl.constexpr, BLOCK_N: tl.constexpr,
           BLOCK_D: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr,
           FIXED: tl.constexpr):  # fmt: skip
    """Attend to slots start to stop - 1, each row from its edge on, then to `nodes` tree nodes from slot stop on.

    `sets_ptr` points to each row's ancestors, `depth_ptr` to the root's depth; None if there is never a tree.
    """
    full = start + (stop - start) // BLOCK_N * BLOCK_N
    first, free = start, start
    if WINDOWED:
        # No row sees tiles before `first`; every row sees all of the tiles from `free` to `full`.
        skipped = tl.maximum(tl.min(edges) - start, 0) // BLOCK_N
        first = tl.minimum(start + skipped * BLOCK_N, full)
        cut = tl.cdiv(tl.maximum(tl.max(edges) - first, 0), BLOCK_N)
        free = tl.minimum(first + cut * BLOCK_N, full)
        if (
            FIXED
        ):  # unmasked tiles depend on the other rows of the tile, and the order of sums would too
            free = full
    for slot in range(free, full, BLOCK_N):
        acc, top, total = _attend_tile(
            acc, top, total, q, k_ptr, v_ptr, stride_k, stride_v, slot, None, None,
            inner, factor, D, BLOCK_N, BLOCK_D, CAPPED, False,
        )  # fmt: skip

    # One loop for all masked slots: tiles cut by windows, slots after the last full tile, and the tree, whose tiles start
    # at its root. Its tiles are narrow, as masks take registers and 32 bits of ancestors then suffice.
    BLOCK_T: tl.constexpr = BLOCK_N if BLOCK_N < 32 else 32
    o_t = tl.arange(0, BLOCK_T)
    cut_tiles = (free - first) // BLOCK_T
    prefix_tiles = cut_tiles + tl.cdiv(stop - full, BLOCK_T)
    for i in range(0, prefix_tiles + tl.cdiv(nodes, BLOCK_T)):
        slot = tl.where(i < cut_tiles, first, full - cut_tiles * BLOCK_T) + i * BLOCK_T
        position, end = slot + o_t, stop
        if sets_ptr is not None:
            in_tree, node = i >= prefix_tiles, tl.maximum(i - prefix_tiles, 0) * BLOCK_T
            slot, end = tl.where(in_tree, stop + node, slot), tl.where(in_tree, stop + nodes, stop)
        m_n = slot + o_t < end
        visible = m_n[None, :]
        if sets_ptr is not None:
            word = tl.load(sets_ptr + node // 64, mask=in_tree, other=-1) >> (node % 64)
            visible = visible & ((word.to(tl.int32)[:, None] & (1 << o_t)[None, :]) != 0)
            if WINDOWED:
                depth = tl.load(depth_ptr + node + o_t, mask=m_n & in_tree, other=0).to(tl.int32)
                position = tl.where(in_tree, stop + depth, position)
        if WINDOWED:
            visible = visible & (position[None, :] >= edges[:, None])
        acc, top, total = _attend_tile(
            acc, top, total, q, k_ptr, v_ptr, stride_k, stride_v, slot, m_n, visible,
            inner, factor, D, BLOCK_T, BLOCK_D, CAPPED, True,
        )  # fmt: skip
    return acc, top, total


@triton.jit
def store_result(out_ptr, lse_ptr, acc, top, total, o_rows, m_rows, D: tl.constexpr,
                 BLOCK_D: tl.constexpr):  # fmt: skip
    """Write results `[rows, D]` and `[rows]`: zeros and -inf for rows that see nothing."""
    o_d = tl.arange(0, BLOCK_D)
    some = tl.where(total == 0, 1.0, total)
    m_rd = m_rows[:, None] & (o_d < D)[None, :]
    out = (acc / some[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + o_rows[:, None] * D + o_d[None, :], out, mask=m_rd)
    if lse_ptr is not None:
        lse = tl.where(total == 0, float("-inf"), (top + tl.log2(some)) / LOG2_E)
        tl.store(lse_ptr + o_rows, lse, mask=m_rows)


@triton.jit
def store_partial(partial_ptr, stats_ptr, acc, top, total, part, o_rows, m_rows, rows,
                  D: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Write one split's partial sums: acc to `[parts, rows, D]`, top and total to `[parts, 2, rows]`."""
    o_d = tl.arange(0, BLOCK_D)
    at = part.to(tl.int64) * rows + o_rows
    m_rd = m_rows[:, None] & (o_d < D)[None, :]
    tl.store(partial_ptr + at[:, None] * D + o_d[None, :], acc, mask=m_rd)
    tl.store(stats_ptr + at + part.to(tl.int64) * rows, top, mask=m_rows)
    tl.store(stats_ptr + at + (part.to(tl.int64) + 1) * rows, total, mask=m_rows)
