"""Greedy acceptance, one program per row: the reference's test of each node, on words of 64 nodes.

    right     [BLOCK_N]         token == the target's token at the parent
    wrong     [WORDS]           nodes that are not right, as bits
    accepted  [BLOCK_N]         (ancestors [BLOCK_N, WORDS] & wrong) == 0 in every word

Accepted nodes form a chain, so a node's index in the path is its depth, and the last node has the largest index. If siblings
share a token, which `pack_tree` never produces, a walk from the root takes the first ones.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ancestors import WORD


@triton.jit
def _first_chain(right, parents, o_n, BLOCK_N: tl.constexpr):
    """Walk down from the root to the first right child of each node."""
    chain = o_n == 0
    at = tl.min(tl.where(right & (parents == 0) & (o_n > 0), o_n, BLOCK_N))
    while at < BLOCK_N:
        chain = chain | (o_n == at)
        at = tl.min(tl.where(right & (parents == at), o_n, BLOCK_N))
    return chain


@triton.jit(do_not_specialize=["nodes", "words"])
def _accept_tree_kernel(
    tokens_ptr,
    parents_ptr,
    depth_ptr,
    ancestors_ptr,
    sizes_ptr,
    picked_ptr,
    path_ptr,
    lengths_ptr,
    next_ptr,
    nodes,
    words,
    BLOCK_N: tl.constexpr,
    WORDS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    o_n, o_w = tl.arange(0, BLOCK_N), tl.arange(0, WORDS)
    size = tl.load(sizes_ptr + row)
    first = row * nodes
    m_n = o_n < size
    tokens = tl.load(tokens_ptr + first + o_n, mask=m_n, other=0)
    parents = tl.load(parents_ptr + first + o_n, mask=m_n, other=0)
    picked = tl.load(picked_ptr + first + parents, mask=m_n & (parents >= 0), other=0)
    right = m_n & (
        (tokens == picked) | (o_n == 0)
    )  # all False in a row of padding, whose size is 0

    # Bits of one word are distinct, so their sum is their union; bit 63 wraps into the sign.
    bit = tl.where(right, 0, 1).to(tl.int64) << (o_n % 64).to(tl.int64)
    wrong = tl.sum(tl.reshape(bit, [WORDS, BLOCK_N // WORDS]), 1)  # [WORDS]
    m_nw = m_n[:, None] & (o_w < words)[None, :]
    ancestors = tl.load(
        ancestors_ptr + (first + o_n)[:, None] * words + o_w[None, :], mask=m_nw, other=0
    )
    accepted = right & (tl.sum(((ancestors & wrong[None, :]) != 0).to(tl.int32), 1) == 0)

    depth = tl.load(depth_ptr + first + o_n, mask=accepted, other=0)
    if tl.sum(accepted.to(tl.int64)) > tl.max(tl.where(accepted, depth + 1, 0)):
        accepted = _first_chain(right, parents, o_n, BLOCK_N)
    length = tl.sum(accepted.to(tl.int64)) - 1
    last = tl.max(tl.where(accepted, o_n, 0))
    tl.store(path_ptr + first + depth, o_n.to(tl.int64), mask=accepted)
    tl.store(path_ptr + first + o_n, -1, mask=(o_n > length) & (o_n < nodes))
    tl.store(lengths_ptr + row, length)
    tl.store(next_ptr + row, tl.load(picked_ptr + first + last, mask=length >= 0, other=-1))


def launch_accept_tree(
    tokens: Tensor, parents: Tensor, depth: Tensor, ancestors: Tensor, sizes: Tensor, picked: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel; arguments and results as in `accept_tree`."""
    batch, nodes = tokens.shape
    words = ancestors.shape[-1]
    block_words = triton.next_power_of_2(words)
    path = torch.empty((batch, nodes), dtype=torch.int64, device=tokens.device)
    lengths = torch.empty(batch, dtype=torch.int64, device=tokens.device)
    next_tokens = torch.empty(batch, dtype=torch.int64, device=tokens.device)
    inputs = (tokens, parents, depth, ancestors, sizes, picked)
    _accept_tree_kernel[(batch,)](
        *(x.contiguous() for x in inputs),
        path,
        lengths,
        next_tokens,
        nodes,
        words,
        BLOCK_N=block_words * WORD,
        WORDS=block_words,
        num_warps=max(2, block_words),  # one node per lane
    )
    return path, lengths, next_tokens
