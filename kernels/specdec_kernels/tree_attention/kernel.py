"""Attention of token trees; a program computes some rows of one K/V head over one split of the prefix.

    row r of a batch row's K/V head: node r // GROUP, query head r % GROUP of the group
    slots   shared | own prefix: split 0 | split 1 | ... | last split, tree of N nodes
            ^ shared_prefix.py             full tiles without masks | last tile, tree: masked

K and V of a prefix are thus read once for all nodes and heads of BLOCK_M rows. The device splits a prefix by its length;
empty splits return at once, and the last non-empty split continues with the tree. A single split writes results, several
write partial sums for `merge.py`. Rows of padding read nothing, and their results are zeros.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gpu import gpu_of
from .loops import (
    FLOOR,
    attend,
    cache_row,
    own_prefix,
    score_factors,
    shared_prefix,
    store_partial,
    store_result,
    tokens_per_split,
)
from .merge import launch_merge
from .shared_prefix import launch_shared_prefix
from .tiles import SplitPolicy, choose_splits, choose_tiles, padded

NO_WINDOW = 2**31 - 1


@triton.jit(do_not_specialize=["window", "nodes", "splits", "shared_splits", "rows_of_all"])
def _tree_attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, partial_ptr, stats_ptr,
    prefix_ptr, ancestors_ptr, depth_ptr, cache_rows_ptr, shared_rows_ptr, shared_lens_ptr,
    scale, softcap, window, nodes, splits, shared_splits, rows_of_all,
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
    rows = nodes * GROUP
    tiles = tl.cdiv(rows, BLOCK_M)
    # Neighbouring programs are tiles of one K/V head, so they find its keys and values in L2.
    i_m = tl.program_id(0) % tiles
    i_g = tl.program_id(0) // tiles % (HEADS // GROUP)
    i_b = (tl.program_id(0) // tiles // (HEADS // GROUP)).to(tl.int64)

    # A row of padding has a prefix of -1 slots, at which no split ends: it sees no slots and no nodes, and writes zeros.
    row = cache_row(cache_rows_ptr, i_b)
    prefix = tl.where(row < 0, -1, tl.load(prefix_ptr + i_b)).to(tl.int32)
    shared = shared_prefix(shared_rows_ptr, shared_lens_ptr, i_b)
    begin = own_prefix(prefix, tl.minimum(shared, prefix), window)
    chunk = tokens_per_split(prefix - begin, splits)
    start = begin + i_split * chunk
    if (i_split > 0) & (start >= prefix):
        return
    stop = tl.maximum(tl.minimum(start + chunk, prefix), begin)

    o_r = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_r = o_r < rows
    o_r = tl.minimum(o_r, rows - 1)  # rows beyond the last repeat it
    node, head = o_r // GROUP, i_g * GROUP + o_r % GROUP
    tree = i_b * nodes
    o_d = tl.arange(0, BLOCK_D)
    q_rows = q_ptr + i_b * stride_qb + node.to(tl.int64) * stride_qn + head.to(tl.int64) * stride_qh
    q = tl.load(q_rows[:, None] + o_d[None, :], mask=(o_d < D)[None, :], other=0.0)
    k_ptr += row * stride_kb + i_g.to(tl.int64) * stride_kg
    v_ptr += row * stride_vb + i_g.to(tl.int64) * stride_vg

    edges = tl.zeros([BLOCK_M], tl.int32)
    if WINDOWED:
        edges = prefix + tl.load(depth_ptr + tree + node).to(tl.int32) - window + 1
    inner, factor = score_factors(scale, softcap, CAPPED)
    top = tl.full([BLOCK_M], FLOOR, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # The last split continues with the tree. Parents precede children, so no row sees nodes after this tile's last one.
    seen = tl.where(stop == prefix, tl.max(node) + 1, 0)
    sets = ancestors_ptr + (tree + node) * tl.cdiv(nodes, 64)
    acc, top, total = attend(
        acc, top, total, q, k_ptr, v_ptr, stride_ks, stride_vs, start, stop, edges,
        sets, depth_ptr + tree, seen, inner, factor, D, BLOCK_N, BLOCK_D, CAPPED, WINDOWED, FIXED,
    )  # fmt: skip

    o_rows = (tree + node) * HEADS + head
    if partial_ptr is not None:
        part = shared_splits + i_split
        store_partial(
            partial_ptr, stats_ptr, acc, top, total, part, o_rows, m_r, rows_of_all, D, BLOCK_D
        )
    else:
        store_result(out_ptr, lse_ptr, acc, top, total, o_rows, m_r, D, BLOCK_D)


def launch_tree_attention(*arguments: Any) -> Tensor:
    """Launch the kernels; arguments in the order of the op's schema, result as of `tree_attention`."""
    out, _ = _launch(*arguments, with_lse=False)
    return out


def launch_tree_attention_lse(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Launch the kernels; arguments in the order of the op's schema, results as of `tree_attention_lse`."""
    out, lse = _launch(*arguments, with_lse=True)
    assert lse is not None
    return out, lse


def _launch(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    prefix_lens: Tensor,
    ancestors: Tensor,
    depth: Tensor,
    cache_rows: Tensor | None,
    shared_rows: Tensor | None,
    shared_lens: Tensor | None,
    scale: float,
    softcap: float | None,
    window: int | None,
    split_policy: SplitPolicy,
    *,
    with_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    batch, nodes, heads, size = q.shape
    kv_heads, slots = k_cache.shape[1:3]
    group, gpu = heads // kv_heads, gpu_of(q.device)
    out = torch.empty((batch, nodes, heads, size), dtype=q.dtype, device=q.device)
    lse = (
        torch.empty((batch, nodes, heads), dtype=torch.float32, device=q.device)
        if with_lse
        else None
    )
    if batch == 0:
        return out, lse
    prefix_lens, ancestors, depth = (x.contiguous() for x in (prefix_lens, ancestors, depth))
    if cache_rows is not None:
        cache_rows = cache_rows.contiguous()

    tiles = choose_tiles(nodes * group, size, q.itemsize, gpu, split_policy)
    programs = batch * kv_heads * triton.cdiv(nodes * group, tiles.block_m)
    splits = choose_splits(programs, slots, tiles, gpu, split_policy)
    shared_splits, shared_tiles = 0, None
    if shared_rows is not None and shared_lens is not None:
        shared_rows, shared_lens = shared_rows.contiguous(), shared_lens.contiguous()
        shared_tiles = choose_tiles(batch * nodes * group, size, q.itemsize, gpu, split_policy)
        # The number of programs if all rows share one prefix.
        most = kv_heads * triton.cdiv(batch * nodes * group, shared_tiles.block_m)
        shared_splits = choose_splits(most, slots, shared_tiles, gpu, split_policy)

    rows, parts = batch * nodes * heads, shared_splits + splits
    partial = stats = None
    if parts > 1:
        partial = torch.empty((parts, rows, size), dtype=torch.float32, device=q.device)
        stats = torch.empty((parts, 2, rows), dtype=torch.float32, device=q.device)
    window = NO_WINDOW if window is None else min(window, NO_WINDOW)
    scalars = (scale, 1.0 if softcap is None else softcap, window)
    strides = (*q.stride()[:3], *k_cache.stride()[:3], *v_cache.stride()[:3])
    constants = {
        "HEADS": heads,
        "GROUP": group,
        "D": size,
        "BLOCK_D": padded(size),
        "CAPPED": softcap is not None,
        "WINDOWED": window < NO_WINDOW,
        "FIXED": split_policy == "fixed",
    }
    _tree_attention_kernel[(programs, splits)](
        q,
        k_cache,
        v_cache,
        out,
        lse,
        partial,
        stats,
        prefix_lens,
        ancestors,
        depth,
        cache_rows,
        shared_rows,
        shared_lens,
        *scalars,
        nodes,
        splits,
        shared_splits,
        rows,
        *strides,
        **constants,
        **tiles.options(),
    )
    if shared_tiles is not None:
        caches = (k_cache, v_cache)
        trees = (prefix_lens, depth, cache_rows, shared_rows, shared_lens)
        launch_shared_prefix(
            q, caches, (partial, stats), trees, scalars, shared_splits, strides,
            {**constants, **shared_tiles.options()},
        )  # fmt: skip
    if partial is not None and stats is not None:
        rows_of_trees = (prefix_lens, cache_rows, shared_rows, shared_lens)
        launch_merge(partial, stats, out, lse, rows_of_trees, window, shared_splits)
    return out, lse
