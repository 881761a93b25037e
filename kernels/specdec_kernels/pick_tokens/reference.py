"""Sampling as an argmax: a token maximises log-probability plus Gumbel noise with exactly its probability.

Processing follows transformers: temperature, then top-k, then top-p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import host_may_look
from .noise import gumbel_noise, vocabulary_noise

# Number of most likely tokens that contain the nucleus of most rows.
NEAR = 1024
# Within this share of the mass to remove, the order of summation may decide; float32 sums are exact to about 1e-6.
UNSURE = 1e-5


def pick_tokens_reference(
    logits: Tensor,
    seed: int,
    streams: Tensor,
    positions: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Tensor:
    """Reference implementation; arguments as in `pick_tokens`, checked."""
    if top_k is not None and top_p is None and host_may_look(logits):
        picked = _pick_of_best(logits, seed, streams, positions, temperature, top_k)
        if picked is not None:
            return picked
    scores = processed_scores(logits, temperature, top_k, top_p)
    kept = scores != -torch.inf
    if host_may_look(scores) and int(kept.sum()) < kept.numel() // 4:  # cheaper one by one
        rows, ids = kept.nonzero(as_tuple=True)
        noise = gumbel_noise(seed, streams[rows], positions[rows], ids).to(scores.dtype)
        return scores.index_put((rows, ids), noise, accumulate=True).argmax(-1)
    return (scores + vocabulary_noise(seed, streams, positions, scores.shape[1])).argmax(-1)


def _pick_of_best(
    logits: Tensor, seed: int, streams: Tensor, positions: Tensor, temperature: float, top_k: int
) -> Tensor | None:
    """Return the same picks without a pass over removed tokens; None if others equal the last kept token."""
    if top_k >= logits.shape[1]:
        return None
    scores, ids = _tempered(logits, temperature).topk(top_k + 1)
    if not bool((scores[:, top_k - 1] > scores[:, top_k]).all()):  # equal, or NaN
        return None
    ids, order = ids[:, :top_k].sort()  # so that the lowest id is picked among equals
    scores = scores.gather(1, order)
    noise = gumbel_noise(seed, streams[:, None], positions[:, None], ids).to(scores.dtype)
    return ids.gather(1, (scores + noise).argmax(-1, keepdim=True))[:, 0]


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits `[R, V]` by the temperature, in float32 unless they are float64."""
    return (logits if logits.dtype == torch.float64 else logits.float()) / temperature


def processed_scores(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """Divide by the temperature, and set removed tokens to -inf.

    Args:
        logits: `[R, V]`.
        temperature: above 0.
        top_k: number of tokens kept, and all tokens equal to the last of them; None for all.
        top_p: least mass kept; None for all. Among equals at its border the highest ids are kept.

    Returns:
        `[R, V]` float32, or float64 if the logits are.
    """
    scores = _tempered(logits, temperature)
    if top_k is not None:
        last = scores.topk(top_k).values[:, -1:]
        scores = scores.masked_fill(scores < last, -torch.inf)
    if top_p is not None:
        scores = _keep_nucleus(scores, 1 - top_p)
    return scores


def _keep_nucleus(scores: Tensor, removed: float) -> Tensor:
    """Remove the least likely tokens with a total mass of at most `removed`, but never all tokens."""
    if host_may_look(scores) and (first := _first_of_nucleus(scores, removed)) is not None:
        return scores.masked_fill(scores < first, -torch.inf)
    ascending, order = scores.sort(dim=-1, stable=True)
    remove = ascending.softmax(-1).cumsum(-1) <= removed
    remove[:, -1] = False
    return scores.masked_fill(remove.scatter(1, order, remove), -torch.inf)


def _first_of_nucleus(scores: Tensor, removed: float) -> Tensor | None:
    """Find the lowest score kept in each row, `[R, 1]`, without a sort; None if a sort must decide."""
    if scores.shape[1] <= NEAR:
        return None
    probabilities = scores.softmax(-1)
    near, at = probabilities.topk(NEAR)
    below = probabilities.scatter(1, at, 0.0).sum(-1, keepdim=True)
    mass = below + near.flip(-1).cumsum(-1).flip(-1)  # of each token and all less likely ones
    unsure = (mass - removed).abs() <= UNSURE * removed
    kept = (mass > removed).sum(-1, keepdim=True)
    if bool((unsure.any(-1, keepdim=True) | (kept < 1) | (kept >= NEAR)).any()):
        return None
    last, next_one = (scores.gather(1, at.gather(1, kept - i)) for i in (1, 0))
    return last if bool((last > next_one).all()) else None
