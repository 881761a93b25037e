"""One step of beam search: one program per row holds all W * K continuations as keys and takes the best ones.

    keys [BLOCK_C]    score + log-probability, and index: beam w's i-th token at w * K + i

The index in a key breaks ties as the reference does: earlier beam, then more likely token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.ordered_keys import NO_KEY, key_index, key_number, make_key


@triton.jit(do_not_specialize=["candidates", "count", "steps"])
def _beam_step_kernel(
    scores_ptr,
    log_probs_ptr,
    ids_ptr,
    best_ptr,
    parents_ptr,
    tokens_ptr,
    candidates,
    count,
    steps,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    o_c, o_s = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
    m_c, m_s = o_c < candidates, o_s < steps
    first = row * candidates
    log_probs = tl.load(log_probs_ptr + first + o_c, mask=m_c, other=0.0)
    score = tl.load(scores_ptr + row * (candidates // count) + o_c // count, mask=m_c, other=0.0)
    keys = tl.where(m_c, make_key(score + log_probs, o_c), NO_KEY)
    taken = tl.zeros([BLOCK_S], tl.int64)
    for i in range(steps):
        best = tl.max(keys)
        taken = tl.where(o_s == i, best, taken)
        keys = tl.where(keys == best, NO_KEY, keys)

    at, out = key_index(taken), row * steps + o_s
    tl.store(best_ptr + out, key_number(taken), mask=m_s)
    tl.store(parents_ptr + out, at // count, mask=m_s)
    tl.store(tokens_ptr + out, tl.load(ids_ptr + first + at, mask=m_s, other=0), mask=m_s)


def launch_beam_step(
    scores: Tensor, log_probs: Tensor, ids: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel; arguments and results as in `beam_step`."""
    batch, beams, count = ids.shape
    steps = min(width, beams * count)
    best = torch.empty((batch, steps), dtype=torch.float32, device=ids.device)
    parents = torch.empty((batch, steps), dtype=torch.int64, device=ids.device)
    tokens = torch.empty((batch, steps), dtype=torch.int64, device=ids.device)
    block = triton.next_power_of_2(beams * count)
    _beam_step_kernel[(batch,)](
        *(x.contiguous() for x in (scores, log_probs, ids)),
        best,
        parents,
        tokens,
        beams * count,
        count,
        steps,
        BLOCK_C=block,
        BLOCK_S=triton.next_power_of_2(steps),
        # One warp for up to 128 candidates, which needs no barrier per step; eight for 4096, 16 keys per lane.
        num_warps=max(1, min(8, block // 128)),
    )
    return best, parents, tokens
