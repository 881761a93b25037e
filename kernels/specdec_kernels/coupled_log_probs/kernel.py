"""Coupled log-probabilities in one launch: a program per beam computes the noise of its k candidates and normalises.

    scores [BLOCK_K]    sharpness * (log q / T + noise)

Candidates lie anywhere in the vocabulary, so each needs a Philox block of its own and takes one of its four words. All
values stay in registers; each input is read once and the output written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.noise import gumbel, token_bits


# Not specialised: a draft's first step has one beam and later ones several, and seeds always have 64 bits.
@triton.jit(do_not_specialize=["beams", "count", "seed"])
def _coupled_log_probs_kernel(
    log_probs_ptr,
    ids_ptr,
    streams_ptr,
    positions_ptr,
    out_ptr,
    beams,
    count,
    seed: tl.int64,
    temperature,
    sharpness,
    BLOCK_K: tl.constexpr,
):
    beam, o_k = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_K)
    m_k, o_c = o_k < count, beam * count + o_k
    row = beam // beams
    stream, position = tl.load(streams_ptr + row), tl.load(positions_ptr + row)
    ids = tl.load(ids_ptr + o_c, mask=m_k, other=0)
    log_probs = tl.load(log_probs_ptr + o_c, mask=m_k, other=float("-inf"))

    scores = tl.div_rn(log_probs, tl.full([1], temperature, tl.float32))
    scores = sharpness * (scores + gumbel(token_bits(seed, stream, position, ids)))
    below = scores - tl.max(scores)
    normalised = below - tl.log(tl.sum(tl.exp(below)))
    # Without this, beams with only -inf would become NaN.
    normalised = tl.where(scores == float("-inf"), scores, normalised)
    tl.store(out_ptr + o_c, normalised, mask=m_k)


def launch_coupled_log_probs(
    log_probs: Tensor,
    ids: Tensor,
    seed: int,
    streams: Tensor,
    positions: Tensor,
    temperature: float,
    sharpness: float,
) -> Tensor:
    """Launch the kernel; arguments and results as in `coupled_log_probs`, except that the seed is signed."""
    batch, beams, count = ids.shape
    out = torch.empty((batch, beams, count), dtype=torch.float32, device=ids.device)
    block = triton.next_power_of_2(count)
    _coupled_log_probs_kernel[(batch * beams,)](
        *(x.contiguous() for x in (log_probs, ids, streams, positions)),
        out,
        beams,
        count,
        seed,
        temperature,
        sharpness,
        BLOCK_K=block,
        # One warp for up to 128 candidates, which needs no barrier; eight for 1024, four candidates per lane.
        num_warps=max(1, block // 128),
    )
    return out
