"""Packing, one program per row: the reference's pointer doubling, on names instead of a relation of all pairs.

    entry      0  1  2  3       the proposals, one per element of a [BLOCK_E] tile; parent -1 is the root, -2 none
    token      b  c  b  d
    parent    -1  0 -1  2       name after 2^r steps: the first entry with the same tokens on its 2^r steps up
    name       0  1  0  3       a node is an entry that is its own name; a running sum gives its slot
    slot       1  2  -  3       slot 0 is the root's

Names and ranks are computed by comparing all pairs, BLOCK_E x BLOCK_J at a time. Entries read each other with
`tl.gather`, so the compiler places every barrier, and no intermediate results are written to memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ancestors import WORD

# BLOCK_E: (BLOCK_J, warps). A warp has 16 entries (from 64 entries on all four schedulers of a processor work), up to the
# number of warps that every GPU supports. A lane holds 16 comparisons at a time, then 32; with 32 earlier, or with 16 at
# 1024, some compilations spill.
TILES = {64: (32, 4), 128: (32, 8), 256: (32, 16), 512: (32, 16), 1024: (16, 16)}
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
NONE = tl.constexpr(-2)
# Not specialised, as they change from round to round and do not affect alignment: one compilation serves all values.
VARYING = [
    "count", "width", "capacity", "max_depth", "rounds", "stride_root", "stride_token",
    "stride_parent", "stride_score", "stride_source", "stride_valid", "stride_limit",
]  # fmt: skip


@triton.jit
def _at(values, index, other):
    """Return `values[index]`, or `other` if the index is negative."""
    return tl.where(index >= 0, tl.gather(values, tl.maximum(index, 0), 0), other)


@triton.jit
def _bit(index, word):
    """Return the given word of a set with one index; by shifts, so that index -1 is in no word."""
    return tl.where(index >> 6 == word, 1, 0).to(tl.int64) << (index & 63).to(tl.int64)


@triton.jit
def _first_equal(keys, count, BLOCK_E: tl.constexpr, BLOCK_J: tl.constexpr):
    """Find for each entry the first entry with the same key."""
    first = tl.full([BLOCK_J, BLOCK_E], BLOCK_E, tl.int32)
    for start in range(0, count, BLOCK_J):
        o_j = start + tl.arange(0, BLOCK_J)
        equal = tl.gather(keys, o_j, 0)[:, None] == keys[None, :]
        first = tl.minimum(first, tl.where(equal, o_j[:, None], BLOCK_E))
    # An entry without comparisons names itself. Triton 3.7 for AMD fails on a loop that carries the result of `min`.
    return tl.minimum(tl.min(first, 0), tl.arange(0, BLOCK_E))


@triton.jit
def _best_named(name, scores, count, BLOCK_E: tl.constexpr, BLOCK_J: tl.constexpr):
    """Find for each entry the best score of the entries with its name."""
    o_e = tl.arange(0, BLOCK_E)
    best = tl.full([BLOCK_J, BLOCK_E], float("-inf"), tl.float32)
    for start in range(0, count, BLOCK_J):
        o_j = start + tl.arange(0, BLOCK_J)
        named = tl.gather(name, o_j, 0)[:, None] == o_e[None, :]
        best = tl.maximum(best, tl.where(named, tl.gather(scores, o_j, 0)[:, None], float("-inf")))
    return tl.max(best, 0)


@triton.jit
def _count_before(rank, count, BLOCK_E: tl.constexpr, BLOCK_J: tl.constexpr):
    """Count for each entry the entries of higher rank, and the earlier ones of equal rank."""
    o_e = tl.arange(0, BLOCK_E)
    before = tl.zeros([BLOCK_J, BLOCK_E], tl.int32)
    for start in range(0, count, BLOCK_J):
        o_j = start + tl.arange(0, BLOCK_J)
        theirs, ours = tl.gather(rank, o_j, 0)[:, None], rank[None, :]
        wins_tie = (theirs == ours) & (o_j[:, None] < o_e[None, :])
        before += ((theirs > ours) | wins_tie).to(tl.int32)
    return tl.sum(before, 0)


@triton.jit(do_not_specialize=VARYING)
def _pack_tree_kernel(
    roots_ptr,
    tokens_ptr,
    parents_ptr,
    scores_ptr,
    source_ptr,
    valid_ptr,
    row_depth_ptr,
    out_tokens_ptr,
    out_parents_ptr,
    out_depth_ptr,
    out_ancestors_ptr,
    out_sizes_ptr,
    out_scores_ptr,
    out_source_ptr,
    out_node_of_ptr,
    out_dropped_ptr,
    count,
    width,
    capacity,
    max_depth,
    rounds,
    stride_root,
    stride_token,
    stride_parent,
    stride_score,
    stride_source,
    stride_valid,
    stride_limit,
    CUT: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    o_e = tl.arange(0, BLOCK_E)
    m_e = o_e < count
    tokens = tl.load(tokens_ptr + row * stride_token + o_e, mask=m_e, other=0)
    scores = tl.load(scores_ptr + row * stride_score + o_e, mask=m_e, other=0.0).to(tl.float32)
    parents = tl.load(parents_ptr + row * stride_parent + o_e, mask=m_e, other=NONE)
    valid = (parents >= -1) & (parents < o_e)
    if valid_ptr is not None:
        valid &= tl.load(valid_ptr + row * stride_valid + o_e, mask=m_e, other=0) != 0

    # One sweep up the paths finds whether they end at the root, their lengths, and equal paths.
    parents = tl.where(valid, parents, NONE).to(tl.int32)
    up, depth = parents, tl.full([BLOCK_E], 1, tl.int32)
    name = _first_equal(tokens, count, BLOCK_E, BLOCK_J)
    for _ in range(rounds):
        # Names end at BLOCK_E - 1; BLOCK_E is the root's, BLOCK_E + 1 that of no parent.
        above = _at(name, up, BLOCK_E - 1 - up)
        name = _first_equal(name * (2 * BLOCK_E) + above, count, BLOCK_E, BLOCK_J)
        depth += _at(depth, up, 0)
        up = _at(up, up, up)
    limit = max_depth
    if row_depth_ptr is not None:
        limit = tl.minimum(limit, tl.load(row_depth_ptr + row * stride_limit))
    valid = (up == -1) & (depth <= limit)  # equal paths are valid together
    node = valid & (name == o_e)
    parents = _at(name, parents, parents)
    scores = tl.where(valid & (scores == scores), scores, float("-inf"))
    best = _best_named(name, scores, count, BLOCK_E, BLOCK_J)

    kept = node
    if CUT:
        # No node outranks its parent, and ties go to the earlier entry, so ancestors are always kept.
        rank, up = tl.where(node, tl.maximum(best, LOWEST), float("-inf")), parents
        for _ in range(rounds):
            rank = tl.minimum(rank, _at(rank, up, float("inf")))
            up = _at(up, up, up)
        kept &= _count_before(rank, count, BLOCK_E, BLOCK_J) < capacity - 1

    size = 1 + tl.sum(kept.to(tl.int32))
    slot = tl.where(kept, tl.cumsum(kept.to(tl.int32), 0), -1)
    node_of = tl.where(valid, _at(slot, name, -1), -1)
    o_out = row * width + slot
    tl.store(out_node_of_ptr + row * count + o_e, node_of.to(tl.int64), mask=m_e)
    tl.store(out_tokens_ptr + o_out, tokens, mask=kept)
    tl.store(out_parents_ptr + o_out, _at(slot, parents, 0).to(tl.int64), mask=kept)
    tl.store(out_depth_ptr + o_out, depth.to(tl.int64), mask=kept)
    tl.store(out_scores_ptr + o_out, best, mask=kept)
    source = o_e.to(tl.int64)
    if source_ptr is not None:
        source = tl.load(source_ptr + row * stride_source + o_e, mask=m_e, other=0)
    tl.store(out_source_ptr + o_out, source, mask=kept)
    tl.store(out_sizes_ptr + row, size.to(tl.int64))
    tl.store(out_dropped_ptr + row, (1 + tl.sum(node.to(tl.int32)) - size).to(tl.int64))

    # The root, and padding after the last node. The root is read only here, as keeping it from the start would spill.
    root = tl.load(roots_ptr + row * stride_root)
    o_n = tl.arange(0, BLOCK_N)
    m_n = ((o_n == 0) | (o_n >= size)) & (o_n < width)
    o_pad = row * width + o_n
    tl.store(out_tokens_ptr + o_pad, root, mask=m_n)
    tl.store(out_parents_ptr + o_pad, -1, mask=m_n)
    tl.store(out_depth_ptr + o_pad, 0, mask=m_n)
    tl.store(out_scores_ptr + o_pad, tl.where(o_n == 0, 0.0, float("-inf")), mask=m_n)
    tl.store(out_source_ptr + o_pad, -1, mask=m_n)

    for word in tl.static_range(WORDS):
        bits, up = _bit(slot, word), parents
        for _ in range(rounds):
            bits |= _at(bits, up, 0)
            up = _at(up, up, up)
        bits |= 1 if word == 0 else 0  # the root's
        tl.store(out_ancestors_ptr + o_out * WORDS + word, bits, mask=kept)
        tl.store(out_ancestors_ptr + o_pad * WORDS + word, _bit(o_n, word), mask=m_n)


def launch_pack_tree(
    roots: Tensor,
    tokens: Tensor,
    parents: Tensor,
    scores: Tensor,
    source: Tensor | None,
    valid: Tensor | None,
    row_depth: Tensor | None,
    capacity: int,
    max_depth: int,
    width: int,
) -> tuple[Tensor, ...]:
    """Launch the kernel; arguments and results as in `pack_tree`, with N = `width`."""
    batch, count = tokens.shape
    words = -(-width // WORD)
    block = max(64, triton.next_power_of_2(count))
    block_j, warps = TILES[block]
    per_entry = [
        x if x is None or x.stride(1) == 1 else x.contiguous()
        for x in (tokens, parents, scores, source, valid)
    ]

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=tokens.device)

    node_shape = (batch, width)
    out = (
        empty(*node_shape),
        empty(*node_shape),
        empty(*node_shape),
        empty(*node_shape, words),
        empty(batch),
        empty(*node_shape, dtype=torch.float32),
        empty(*node_shape),
        empty(batch, count),
        empty(batch),
    )
    _pack_tree_kernel[(batch,)](
        roots,
        *per_entry,
        row_depth,
        *out,
        count,
        width,
        capacity,
        max_depth,
        min(max_depth, count).bit_length(),  # 2^rounds steps exceed every valid path
        *(0 if x is None else x.stride(0) for x in (roots, *per_entry, row_depth)),
        CUT=count + 1 > capacity,
        WORDS=words,
        BLOCK_N=triton.next_power_of_2(width),
        BLOCK_E=block,
        BLOCK_J=block_j,
        num_warps=warps,
    )
    return out
