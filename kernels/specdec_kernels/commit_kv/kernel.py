"""Commit of all layers in one launch: a program moves one row's nodes in one head of one layer's keys or values.

    grid (layers * 2 * G, B)       slots of a program: [S, D], node j of the path: slot P + path[j] -> P + j

A source never lies before its target and both ascend, so moving nodes in place, BLOCK_A at a time, is safe if each block
is read completely before it is written. Programs of rows of padding return at once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Nodes moved at a time; a round accepts few. A program has as many rows of D numbers in flight.
BLOCK_A = 8


@triton.jit(do_not_specialize=["nodes", "heads"])
def _commit_kv_kernel(
    kv_ptr,
    path_ptr,
    lengths_ptr,
    prefix_ptr,
    rows_ptr,
    nodes,
    heads,
    stride_layer: tl.int64,
    stride_kind: tl.int64,
    stride_row: tl.int64,
    stride_head,
    stride_slot,
    D: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    length = tl.load(lengths_ptr + batch)
    start = tl.load(prefix_ptr + batch)
    row = tl.load(rows_ptr + batch)
    if row < 0:
        return
    plane = (
        kv_ptr
        + (i // (2 * heads)) * stride_layer
        + (i // heads % 2) * stride_kind
        + row * stride_row
        + (i % heads) * stride_head
        + start * stride_slot
    )
    o_a, o_d = tl.arange(0, BLOCK_A), tl.arange(0, BLOCK_D)
    for first in range(1, length + 1, BLOCK_A):  # the root, node 0 of every path, is in place
        step = first + o_a
        node = tl.load(path_ptr + batch * nodes + step, mask=step <= length, other=0)
        moves = (node > step)[:, None] & (o_d < D)[None, :]
        values = tl.load(plane + node[:, None] * stride_slot + o_d[None, :], mask=moves, other=0.0)
        tl.debug_barrier()  # all warps must have read before any writes
        tl.store(plane + step[:, None] * stride_slot + o_d[None, :], values, mask=moves)
        tl.debug_barrier()


def launch_commit_kv(
    kv: Tensor, path: Tensor, lengths: Tensor, prefix_lens: Tensor, cache_rows: Tensor
) -> None:
    """Launch the kernel; arguments as in `commit_kv`."""
    layers, _, _, heads, _, size = kv.shape
    _commit_kv_kernel[(layers * 2 * heads, len(path))](
        kv,
        *(x.contiguous() for x in (path, lengths, prefix_lens, cache_rows)),
        path.shape[1],
        heads,
        *kv.stride()[:5],
        D=size,
        BLOCK_A=BLOCK_A,
        BLOCK_D=triton.next_power_of_2(size),
        num_warps=2,  # 8 rows of 128 bf16 numbers are 64 lanes of 32 bytes
    )
