"""The head in tiles of the vocabulary, each reduced to its best tokens and its logsumexp: no logits are written.

    grid (row blocks, tiles): row blocks with the same weight tile run next to each other, and share it in L2

                    weight [BLOCK_V, BLOCK_K]   @   hidden [BLOCK_K, BLOCK_R]      over E in steps of BLOCK_K
                              └──── logits [BLOCK_V, BLOCK_R], float32, in registers ────┘
    tile t, row r:  maxima[r, t], sums[r, t] = sum of exp(l - max), keys[r, t, 0..k) in descending order

The weight is the left operand: its 128 rows fill the tensor cores, and few rows of hidden need little padding. Keys are
stored as [R, k, tiles], so that a merge reads the first keys of all tiles contiguously.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.math import tanh
from ..device.ordered_keys import NO_KEY, NO_NUMBER, join_key, sortable
from ..device.skinny_linear import add_product, inverse_rms
from ..gpu import gpu_of
from .weights import HeadWeights

# Two HGMMA tiles of 64. The merge computes a token's tile from it.
BLOCK_V = 128
TL_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _round(x, ROUND_TO: tl.constexpr):
    if ROUND_TO is not None:
        x = x.to(ROUND_TO).to(tl.float32)
    return x


@triton.jit
def _finish(logits, bias, logit_scale, softcap, DTYPE: tl.constexpr, ROUND_TO: tl.constexpr):
    """Apply `finish_logits`, with a rounding wherever the reference stores a tensor of dtype `ROUND_TO`."""
    logits += bias
    if ROUND_TO is not None:
        logits = _round(_round(logits, DTYPE), ROUND_TO)
    if logit_scale is not None:
        logits = _round(logits * tl.full([1, 1], logit_scale, tl.float32), ROUND_TO)
    if softcap is not None:
        cap = tl.full([1, 1], softcap, tl.float32)
        logits = _round(tanh(_round(tl.div_rn(logits, cap), ROUND_TO)), ROUND_TO)
        logits = _round(cap * logits, ROUND_TO)
    return logits


@triton.jit
def _store_best(logits, o_r, rows, m_v, tiles, k, keys_ptr, maxima_ptr, sums_ptr):
    """Store keys, maximum and sum of a tile of finished logits `[BLOCK_V, rows]`."""
    tile = tl.program_id(1)
    o_v = tl.arange(0, logits.shape[0])
    highest = tl.max(logits, 0)
    # If all are -inf, so is the maximum, and the sum is 0. A maximum may ignore NaN; a sum does not.
    terms = tl.where(logits == float("-inf"), 0.0, tl.exp(logits - highest[None, :]))
    m_r = o_r < rows
    o_r = o_r.to(tl.int64)
    tl.store(maxima_ptr + o_r * tiles + tile, highest, mask=m_r)
    tl.store(sums_ptr + o_r * tiles + tile, tl.sum(terms, 0), mask=m_r)

    # Numbers without indices, as keys take twice the registers; among equals the maximum finds the first.
    left = tl.where(m_v[:, None], sortable(logits), NO_NUMBER)
    for i in range(k):
        best, at = tl.max(left, 0, return_indices=True)
        key = tl.where(best == NO_NUMBER, NO_KEY, join_key(best, tile * logits.shape[0] + at))
        tl.store(keys_ptr + (o_r * k + i) * tiles + tile, key, mask=m_r)
        left = tl.where(o_v[:, None] == at[None, :], NO_NUMBER, left)


@triton.jit(do_not_specialize=["rows", "vocabulary", "tiles", "k"])
def _head_tiles_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    norm_weight_ptr,
    stopped_ptr,
    keys_ptr,
    maxima_ptr,
    sums_ptr,
    stride_x,
    stride_w,
    rows,
    vocabulary,
    tiles,
    k,
    logit_scale,
    softcap,
    norm_eps,
    E: tl.constexpr,
    ROUND_TO: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(1)
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_r = o_r < rows
    if stopped_ptr is not None:  # noqa: SIM102  (a constant, which leaves out what follows)
        if tl.min(tl.load(stopped_ptr + o_r, mask=m_r, other=1).to(tl.int32), 0) != 0:
            return
    o_v = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    m_v = o_v < vocabulary
    # Rows beyond the end read the last row again, so loads need no masks.
    x_rows = x_ptr + tl.minimum(o_r, rows - 1).to(tl.int64) * stride_x
    w_rows = w_ptr + tl.minimum(o_v, vocabulary - 1).to(tl.int64) * stride_w
    inverse = None
    if norm_weight_ptr is not None:
        inverse = inverse_rms(x_rows, E, norm_eps, BLOCK_K, BLOCK_R)
    logits = add_product(
        tl.zeros([BLOCK_V, BLOCK_R], tl.float32), w_rows, x_rows, E, BLOCK_K, E % BLOCK_K == 0,
        norm_weight_ptr, inverse,
    )  # fmt: skip

    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + o_v, mask=m_v, other=0.0).to(tl.float32)[:, None]
    logits = _finish(logits, bias, logit_scale, softcap, x_ptr.dtype.element_ty, ROUND_TO)
    logits = tl.where(m_v[:, None], logits, float("-inf"))

    if BLOCK_R == 128:
        # Even and odd rows one after the other: all 128 rows and the maximum's intermediates would spill registers.
        even, odd = tl.split(tl.reshape(logits, [BLOCK_V, BLOCK_R // 2, 2]))
        o_even = tl.program_id(0) * BLOCK_R + 2 * tl.arange(0, BLOCK_R // 2)
        _store_best(even, o_even, rows, m_v, tiles, k, keys_ptr, maxima_ptr, sums_ptr)
        _store_best(odd, o_even + 1, rows, m_v, tiles, k, keys_ptr, maxima_ptr, sums_ptr)
    else:
        _store_best(logits, o_r, rows, m_v, tiles, k, keys_ptr, maxima_ptr, sums_ptr)


def launch_head_tiles(
    hidden: Tensor,
    head: HeadWeights,
    k: int,
    *,
    norm_weight: Tensor | None = None,
    norm_eps: float = 0.0,
    stopped: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce every tile of the vocabulary to its best k tokens and its part of the logsumexp.

    Args:
        hidden: `[R, E]`, R at least 1, the last dimension contiguous.
        head: weight and bias in the same dtype, the weight's last dimension contiguous; the merge applies its id map.
        k: 1 to 64.
        norm_weight: `[E]` in the same dtype, applied with `rms_norm` first; None if rows are normalised already.
        norm_eps: added to mean squares.
        stopped: `[R]` bool or int64; blocks of rows that have all stopped are neither computed nor written.

    Returns:
        `keys [R, tiles, k]` int64 (`ordered_keys`; `NO_KEY` if a tile has fewer tokens), `maxima [R, tiles]` and
        `sums [R, tiles]` float32.
    """
    rows, width = hidden.shape
    weight = head.weight
    tiles = -(-weight.shape[0] // BLOCK_V)
    block_rows, block_k, warps, stages = _tiles(hidden)
    keys = torch.empty((rows, k, tiles), dtype=torch.int64, device=hidden.device)
    maxima = torch.empty((rows, tiles), dtype=torch.float32, device=hidden.device)
    sums = torch.empty((rows, tiles), dtype=torch.float32, device=hidden.device)
    _head_tiles_kernel[(-(-rows // block_rows), tiles)](
        hidden,
        weight,
        *(None if x is None else x.contiguous() for x in (head.bias, norm_weight, stopped)),
        keys,
        maxima,
        sums,
        hidden.stride(0),
        weight.stride(0),
        rows,
        weight.shape[0],
        tiles,
        k,
        head.logit_scale,
        head.softcap,
        norm_eps,
        E=width,
        ROUND_TO=None if head.round_to is None else TL_DTYPES[head.round_to],
        BLOCK_V=BLOCK_V,
        BLOCK_R=block_rows,
        BLOCK_K=block_k,
        num_warps=warps,
        num_stages=stages,
    )
    return keys.transpose(1, 2), maxima, sums


def _tiles(hidden: Tensor) -> tuple[int, int, int, int]:
    """Choose BLOCK_R, BLOCK_K, warps and stages."""
    # 16 rows are the least that every tensor core takes; with 128 the weights are read once while reading them bounds the
    # time. Float32 has no tensor cores, is bound by its products from 40 rows on, and its operands of 128 rows do not fit
    # into registers.
    wide = hidden.dtype == torch.float32
    block_rows = min(64 if wide else 128, max(16, triton.next_power_of_2(len(hidden))))
    warps = 8 if block_rows >= 64 else 4
    block_k = 16 if wide else 64  # whole cache lines, or what registers hold
    # Bytes in flight hide memory latency: three programs of 16 rows share a processor of sm_90, each with three tiles of
    # 16 KB in flight. Four stages of 128 rows and their norm exceed the 99 KB of small GPUs. AMD pipelines through
    # registers and has 64 KB of shared memory.
    stages = 3 if block_rows == 128 else 4
    if gpu_of(hidden.device).arch.startswith("gfx"):
        stages = 2
    return block_rows, block_k, warps, stages
