"""Merges the sorted lists of all tiles, for one row or for all beams of a batch row at once.

    lists [W, k, tiles]     keys, descending in every tile of every beam

    untouched [W]           per beam, the best first key of a tile that has not been taken
    opened [steps]          the successors of taken keys in their tiles

One program per batch row takes the best of `untouched` and `opened`, `steps` times. After each step it reads only the
successor of the taken key and the first keys of its beam. Any number of lists is thus merged with few registers, without
a sort and without writing intermediate results. Candidates are ordered by score + number - logsumexp, then by beam, then
by key (more likely token, lower id).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.ordered_keys import NO_KEY, key_index, key_number, make_key
from .kernel import BLOCK_V

# Keys that a program reads at a time: 1024 tiles of one beam, or 16 tiles of 64 beams. That is four numbers of each kind
# per lane; eight spill on some GPUs.
CHUNK = 1024
WARPS = 8


@triton.jit
def _read_tiles(
    keys_ptr, maxima_ptr, sums_ptr, row, beams, tiles, k, BLOCK_W: tl.constexpr, CHUNK: tl.constexpr
):
    """Return logsumexp and best key of each beam; tiles are summed in a fixed order."""
    BLOCK_C: tl.constexpr = CHUNK // BLOCK_W
    o_w, o_c = tl.arange(0, BLOCK_W), tl.arange(0, BLOCK_C)
    line = row * beams + o_w.to(tl.int64)
    highest = tl.full([BLOCK_W], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_W], tl.float32)
    best = tl.full([BLOCK_W], NO_KEY, tl.int64)
    for first in range(0, tiles, BLOCK_C):
        tile = first + o_c
        m = (o_w < beams)[:, None] & (tile < tiles)[None, :]
        at = line[:, None] * tiles + tile[None, :]
        maxima = tl.load(maxima_ptr + at, mask=m, other=float("-inf"))
        sums = tl.load(sums_ptr + at, mask=m, other=0.0)
        heads = tl.load(
            keys_ptr + line[:, None] * (k * tiles) + tile[None, :], mask=m, other=NO_KEY
        )
        best = tl.maximum(best, tl.max(heads, 1))
        above = tl.maximum(highest, tl.max(maxima, 1))
        # If all are -inf so far, -inf - -inf would be NaN; -inf - 0 keeps sums of 0. It also keeps a NaN in a sum that
        # the maximum ignored.
        base = tl.where(above == float("-inf"), 0.0, above)
        added = tl.sum(sums * tl.exp(maxima - base[:, None]), 1)
        total = total * tl.exp(highest - base) + added
        highest = above
    return highest + tl.log(total), best


@triton.jit
def _sum(key, score, logsumexp, beam):
    """Return the key of a candidate's cumulative score; if all logits are -inf, so is every log-probability."""
    base = tl.where(logsumexp == float("-inf"), 0.0, logsumexp)
    total = score + (key_number(key) - base)
    return tl.where(key == NO_KEY, NO_KEY, make_key(total, beam))


@triton.jit(do_not_specialize=["beams", "tiles", "k", "steps"])
def _merge_tiles_kernel(
    keys_ptr,
    maxima_ptr,
    sums_ptr,
    scores_ptr,
    id_map_ptr,
    logsumexp_ptr,
    best_ptr,
    parents_ptr,
    tokens_ptr,
    beams,
    tiles,
    k,
    steps,
    BLOCK_V: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    o_w, o_s = tl.arange(0, BLOCK_W), tl.arange(0, BLOCK_S)
    o_t, o_k = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    logsumexp, untouched = _read_tiles(
        keys_ptr, maxima_ptr, sums_ptr, row, beams, tiles, k, BLOCK_W, CHUNK
    )
    score = tl.zeros([BLOCK_W], tl.float32)
    if scores_ptr is not None:
        score = tl.load(scores_ptr + row * beams + o_w, mask=o_w < beams, other=0.0)
    if logsumexp_ptr is not None:
        tl.store(logsumexp_ptr + row * beams + o_w, logsumexp, mask=o_w < beams)

    # A candidate's score is a key whose index is its beam, so that the earliest beam wins among equals.
    sums = _sum(untouched, score, logsumexp, o_w)
    opened = tl.full([BLOCK_S], NO_KEY, tl.int64)
    opened_sums = opened
    taken, taken_sums = tl.zeros([BLOCK_S], tl.int64), tl.zeros([BLOCK_S], tl.int64)
    for i in range(steps):
        best = tl.maximum(tl.max(sums), tl.max(opened_sums))
        key = tl.maximum(
            tl.max(tl.where(sums == best, untouched, NO_KEY)),
            tl.max(tl.where(opened_sums == best, opened, NO_KEY)),
        )
        taken = tl.where(o_s == i, key, taken)
        taken_sums = tl.where(o_s == i, best, taken_sums)

        beam = key_index(best)
        its_score = tl.sum(tl.where(o_w == beam, score, 0.0))
        its_logsumexp = tl.sum(tl.where(o_w == beam, logsumexp, 0.0))
        # A beam's keys are taken in descending order, so all keys below this one are still available.
        lists = keys_ptr + (row * beams + beam) * k * tiles
        entries = tl.load(
            lists + o_k * tiles + key_index(key) // BLOCK_V, mask=o_k < k, other=NO_KEY
        )
        heads = tl.load(lists + o_t, mask=o_t < tiles, other=NO_KEY)
        successor = tl.max(tl.where(entries < key, entries, NO_KEY))
        head = tl.max(tl.where(heads < key, heads, NO_KEY))

        is_taken = (opened_sums == best) & (opened == key)
        opened = tl.where(o_s == i, successor, tl.where(is_taken, NO_KEY, opened))
        successor_sum = _sum(successor, its_score, its_logsumexp, beam)
        opened_sums = tl.where(o_s == i, successor_sum, tl.where(is_taken, NO_KEY, opened_sums))
        untouched = tl.where(o_w == beam, head, untouched)
        sums = tl.where(o_w == beam, _sum(head, its_score, its_logsumexp, beam), sums)

    m_s, out = o_s < steps, row * steps + o_s
    tokens = key_index(taken)
    if id_map_ptr is not None:
        tokens = tl.load(id_map_ptr + tokens, mask=m_s, other=0)
    tl.store(tokens_ptr + out, tokens, mask=m_s)
    tl.store(best_ptr + out, key_number(taken_sums), mask=m_s)
    if parents_ptr is not None:
        tl.store(parents_ptr + out, key_index(taken_sums), mask=m_s)


def launch_merge_rows(
    keys: Tensor, maxima: Tensor, sums: Tensor, id_map: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the tiles of each row; arguments from `launch_head_tiles`, results as `TopTokens`."""
    rows, _, k = keys.shape
    logsumexp = torch.empty(rows, dtype=torch.float32, device=keys.device)
    log_probs, ids = _launch(keys, maxima, sums, None, id_map, logsumexp, None, (rows, 1), k)
    return ids, log_probs, logsumexp


def launch_merge_beams(
    keys: Tensor, maxima: Tensor, sums: Tensor, scores: Tensor, width: int, id_map: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the tiles of all beams of each row of `scores [B, W]`; results as `Beams`."""
    batch, beams = scores.shape
    steps = min(width, beams * keys.shape[2])
    parents = torch.empty((batch, steps), dtype=torch.int64, device=keys.device)
    scores = scores.contiguous()
    best, tokens = _launch(keys, maxima, sums, scores, id_map, None, parents, (batch, beams), steps)
    return best, parents, tokens


def _launch(
    keys: Tensor,
    maxima: Tensor,
    sums: Tensor,
    scores: Tensor | None,
    id_map: Tensor | None,
    logsumexp: Tensor | None,
    parents: Tensor | None,
    shape: tuple[int, int],
    steps: int,
) -> tuple[Tensor, Tensor]:
    batch, beams = shape
    _, tiles, k = keys.shape
    best = torch.empty((batch, steps), dtype=torch.float32, device=keys.device)
    tokens = torch.empty((batch, steps), dtype=torch.int64, device=keys.device)
    _merge_tiles_kernel[(batch,)](
        keys,
        maxima,
        sums,
        scores,
        None if id_map is None else id_map.contiguous(),
        logsumexp,
        best,
        parents,
        tokens,
        beams,
        tiles,
        k,
        steps,
        BLOCK_V=BLOCK_V,
        BLOCK_W=triton.next_power_of_2(beams),
        BLOCK_T=triton.next_power_of_2(tiles),
        BLOCK_K=triton.next_power_of_2(k),
        BLOCK_S=triton.next_power_of_2(steps),
        CHUNK=CHUNK,
        num_warps=WARPS,
    )
    return best, tokens
