"""A linear layer for few rows, fused with bias, SiLU and residual.

    out[r, f] = residual[r, f] + silu(sum_k weight[f, k] x[r, k] + bias[f])

                 weight [BLOCK_F, BLOCK_K]  @  x [BLOCK_K, BLOCK_R]      over K, each weight read once
                            └── acc [BLOCK_F, BLOCK_R], float32 ──┘
    grid (row blocks, F tiles): row blocks with the same weight tile run next to each other, and share it in L2

The weight is the left operand, as it fills the 64 rows of a Hopper product, which few rows of x would not. Sums, SiLU and
residual are computed in float32 and rounded once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gpu import Gpu, gpu_of


class Tiles(NamedTuple):
    """Tile sizes of a product of weights and few rows."""

    features: int
    rows: int
    depth: int
    warps: int
    stages: int


def choose_tiles(rows: int, features: int, depth: int, dtype: torch.dtype, gpu: Gpu) -> Tiles:
    """Choose tiles for weights `[features, depth]` and a number of rows."""
    block_r = min(64, max(16, triton.next_power_of_2(rows)))
    row_blocks = -(-rows // block_r)
    # A weight must stream through most processors at once (two thirds: not tuned on a GPU). 64 of its rows are one
    # Hopper product, 16 the smallest; float32 has no tensor cores, and its operands are in registers.
    sizes = (32, 16) if dtype == torch.float32 else (64, 32, 16)
    filled = (size for size in sizes if -(-features // size) * row_blocks >= gpu.processors * 2 / 3)
    block_f = next(filled, 16)
    # 128 numbers of 16 bits are two cache lines of a row; SmolLM2's 576 is no multiple of them, but of 64.
    block_k = 32 if dtype == torch.float32 else 128 if depth % 128 == 0 else 64
    # Two programs per processor, so that one loads while the other starts or ends; 8 tiles in flight are nearly all of
    # SmolLM2's 9. AMD's compiler keeps one tile in registers and one in shared memory.
    tile_bytes = (block_f + block_r) * block_k * dtype.itemsize
    deepest = 2 if gpu.arch.startswith("gfx") else 8
    stages = min(deepest, max(2, gpu.shared_bytes // 2 // tile_bytes))
    return Tiles(block_f, block_r, block_k, 2 if block_f == 16 else 4, stages)


@triton.jit
def add_product(
    acc,
    w_rows,
    x_rows,
    depth,
    BLOCK_K: tl.constexpr,
    WHOLE: tl.constexpr,
    norm_ptr=None,
    inverse=None,
):
    """Add `weight [BLOCK_F, depth] @ x [depth, BLOCK_R]` to `acc`; both are given as pointers to their rows.

    With a norm's weight and the rows' `inverse_rms`, x is normalised first, with the roundings of `rms_norm`.
    """
    o_k = tl.arange(0, BLOCK_K)
    for first in range(0, depth, BLOCK_K):
        w_tile = w_rows[:, None] + (first + o_k)[None, :]
        x_tile = x_rows[None, :] + (first + o_k)[:, None]
        m_k = first + o_k < depth
        if WHOLE:
            w, x = tl.load(w_tile), tl.load(x_tile)
        else:
            w = tl.load(w_tile, mask=m_k[None, :], other=0.0)
            x = tl.load(x_tile, mask=m_k[:, None], other=0.0)
        if norm_ptr is not None:
            g = tl.load(norm_ptr + first + o_k, mask=m_k, other=0.0).to(tl.float32)
            normed = (x.to(tl.float32) * inverse[None, :]).to(x.dtype)
            x = (g[:, None] * normed.to(tl.float32)).to(x.dtype)
        acc = tl.dot(w, x, acc, input_precision="ieee")
    return acc


@triton.jit
def inverse_rms(x_rows, depth, eps, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr):
    """Return 1 / sqrt(mean square + eps) of rows `[depth]`, given as pointers."""
    o_k = tl.arange(0, BLOCK_K)
    squares = tl.zeros([BLOCK_K, BLOCK_R], tl.float32)
    # Triton does not pipeline loads without a product unless `num_stages` is given.
    for first in tl.range(0, depth, BLOCK_K, num_stages=4):
        x_tile = x_rows[None, :] + (first + o_k)[:, None]
        x = tl.load(x_tile, mask=(first + o_k < depth)[:, None], other=0.0).to(tl.float32)
        squares += x * x
    return 1 / tl.sqrt_rn(tl.sum(squares, 0) / depth + tl.full([1], eps, tl.float32))


@triton.jit
def silu(x):
    """Apply SiLU to float32 numbers."""
    return x / (1 + tl.exp(-x))


@triton.jit(do_not_specialize=["rows", "width"])
def _skinny_linear_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    part_ptr,
    residual_ptr,
    context_ptr,
    stopped_ptr,
    out_ptr,
    stride_x,
    stride_w,
    stride_part,
    stride_residual,
    stride_context,
    rows,
    width,
    features,
    split,
    depth,
    SILU: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE: tl.constexpr,
):
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    m_r, m_f = o_r < rows, o_f < features
    if stopped_ptr is not None:
        m_r = m_r & (tl.load(stopped_ptr + o_r, mask=m_r, other=1) == 0)
        if tl.max(m_r.to(tl.int32), 0) == 0:
            return
    # Rows beyond the end read the last row again, so the loop needs no masks.
    i_r = tl.minimum(o_r, rows - 1).to(tl.int64)
    i_f = tl.minimum(o_f, features - 1).to(tl.int64)
    acc = tl.zeros([BLOCK_F, BLOCK_R], tl.float32)
    x_rows = x_ptr + i_r * stride_x
    acc = add_product(acc, w_ptr + i_f * stride_w, x_rows, depth, BLOCK_K, WHOLE)

    # From here on, bounds are masks: clamped offsets would not be consecutive, and load one by one.
    m_fr = m_f[:, None] & m_r[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + o_f, mask=m_f, other=0.0).to(tl.float32)[:, None]
    batch = i_r // width
    if part_ptr is not None:
        part = part_ptr + (batch * stride_part)[None, :] + o_f[:, None]
        acc += tl.load(part, mask=m_fr, other=0.0).to(tl.float32)
    if SILU:
        acc = silu(acc)
    if residual_ptr is not None:
        own = residual_ptr + (i_r * stride_residual)[None, :] + (o_f - split)[:, None]
        m_own = m_fr & (o_f >= split)[:, None]
        acc += tl.load(own, mask=m_own, other=0.0).to(tl.float32)
    if context_ptr is not None:
        shared = context_ptr + (batch * stride_context)[None, :] + o_f[:, None]
        m_shared = m_fr & (o_f < split)[:, None]
        acc += tl.load(shared, mask=m_shared, other=0.0).to(tl.float32)
    out = out_ptr + (i_r * features)[None, :] + o_f[:, None]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=m_fr)


def launch_skinny_linear(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    part: Tensor | None = None,
    silu: bool = False,
    residual: Tensor | None = None,
    context: Tensor | None = None,
    stopped: Tensor | None = None,
) -> Tensor:
    """Compute `residual + silu(x @ weight.T + bias)`; all tensors have one dtype and a contiguous last dimension.

    Args:
        x: `[R, K]`.
        weight: `[F, K]`.
        bias: `[F]`, or None.
        part: `[B, F]`, added before SiLU to the R / B rows of each batch row; None for none.
        silu: whether SiLU is applied, before the residual.
        residual: `[R, F]`, or `[R, F - C]` with a context; None for none.
        context: `[B, C]`, the first C columns of the residual of each batch row; None for none.
        stopped: `[R]` bool or int64, rows that are neither computed nor written; None for none.

    Returns:
        `[R, F]`, contiguous.
    """
    (rows, depth), features = x.shape, len(weight)
    tiles = choose_tiles(rows, features, depth, x.dtype, gpu_of(x.device))
    batched = next((len(t) for t in (part, context) if t is not None), rows)
    out = torch.empty((rows, features), dtype=x.dtype, device=x.device)
    grid = (-(-rows // tiles.rows), -(-features // tiles.features))
    _skinny_linear_kernel[grid](
        x,
        weight,
        bias,
        part,
        residual,
        context,
        stopped,
        out,
        x.stride(0),
        weight.stride(0),
        *(0 if t is None else t.stride(0) for t in (part, residual, context)),
        rows,
        rows // batched,
        features,
        0 if context is None else context.shape[1],
        depth,
        SILU=silu,
        BLOCK_F=tiles.features,
        BLOCK_R=tiles.rows,
        BLOCK_K=tiles.depth,
        WHOLE=depth % tiles.depth == 0,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out
