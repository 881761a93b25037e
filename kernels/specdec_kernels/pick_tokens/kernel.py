"""Picking in two launches: the best token of each tile by score plus noise, then the best of all tiles.

    grid (rows, tiles)    keys[r, t] = max over the tile of (number, 2^32 - 1 - id), one int64 (`ordered_keys`)
    grid (rows)           id of max over t of keys[r, t]

A thread holds four neighbouring tokens, whose noise is one Philox block, so every word is used. Tokens below a row's bound
(`bound.py`) are removed before the noise is computed; a tile with no other tokens skips it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.noise import gumbel, noise_bits
from ..device.ordered_keys import NO_KEY, key_index, make_key
from .bound import launch_bounds, rank, read_scores

BLOCK_V = 512
WARPS = 4


@triton.jit(do_not_specialize=["seed", "tiles"])
def _pick_tiles_kernel(
    logits_ptr,
    bounds_ptr,
    streams_ptr,
    positions_ptr,
    keys_ptr,
    stride,
    vocabulary,
    tiles,
    seed: tl.int64,
    temperature,
    BLOCK_V: tl.constexpr,
):
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = tile * BLOCK_V
    o_v = first + tl.arange(0, BLOCK_V)
    m_v = o_v < vocabulary
    scores = read_scores(logits_ptr + row * stride, o_v, m_v, temperature)
    if bounds_ptr is not None:
        kept = rank(scores, o_v) >= tl.load(bounds_ptr + row)
        scores = tl.where(kept, scores, float("-inf"))
    if tl.sum((scores != float("-inf")).to(tl.int32)) > 0:
        stream, position = tl.load(streams_ptr + row), tl.load(positions_ptr + row)
        scores += gumbel(noise_bits(seed, stream, position, first, BLOCK_V))
    keys = tl.where(m_v, make_key(scores, o_v), NO_KEY)
    tl.store(keys_ptr + row * tiles + tile, tl.max(keys))


@triton.jit(do_not_specialize=["tiles"])
def _best_tile_kernel(keys_ptr, ids_ptr, tiles, BLOCK_T: tl.constexpr):
    row, o_t = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_T)
    keys = tl.load(keys_ptr + row * tiles + o_t, mask=o_t < tiles, other=NO_KEY)
    tl.store(ids_ptr + row, key_index(tl.max(keys)))


def launch_pick_tokens(
    logits: Tensor,
    seed: int,
    streams: Tensor,
    positions: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Tensor:
    """Launch the kernels; arguments and results as in `pick_tokens`, except that the seed is signed."""
    rows, vocabulary = logits.shape
    tiles = -(-vocabulary // BLOCK_V)
    divisor = None if temperature == 1 else temperature
    bounds = None
    if top_k is not None or top_p is not None:
        bounds = launch_bounds(logits, divisor, top_k, top_p)
    keys = torch.empty((rows, tiles), dtype=torch.int64, device=logits.device)
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _pick_tiles_kernel[(rows, tiles)](
        logits,
        bounds,
        streams.contiguous(),
        positions.contiguous(),
        keys,
        logits.stride(0),
        vocabulary,
        tiles,
        seed,
        divisor,
        BLOCK_V=BLOCK_V,
        num_warps=WARPS,
    )
    _best_tile_kernel[(rows,)](keys, ids, tiles, BLOCK_T=triton.next_power_of_2(tiles), num_warps=1)
    return ids
