"""Functions shared by drafters with beam search."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec_kernels import Beams


def hopeless(scores: Tensor, least: float) -> bool:
    """Return whether beams with log-probabilities `[B, W]` have less total probability than `least`, averaged over rows."""
    return least > 0 and bool(scores.exp().sum() < least * len(scores))


def trace_back(steps: list[Beams]) -> tuple[Tensor, Tensor]:
    """Trace the final beams back to the root.

    Args:
        steps: the L steps of one beam search.

    Returns:
        Tokens `[B, W, L]` int64 and cumulative scores `[B, W, L]` float32, best beam first.
    """
    at = torch.arange(steps[-1].tokens.shape[1], device=steps[-1].tokens.device)
    at = at.expand(len(steps[-1].tokens), -1)
    tokens, scores = [], []
    for beams in reversed(steps):
        tokens.append(beams.tokens.gather(1, at))
        scores.append(beams.scores.gather(1, at))
        at = beams.parents.gather(1, at)
    return torch.stack(tokens[::-1], 2), torch.stack(scores[::-1], 2)


def keep_best(
    tokens: Tensor, parents: Tensor, scores: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the best proposals of a search, in order; a kept proposal's parents are kept too.

    Args:
        tokens: `[B, K]` int64.
        parents: `[B, K]` int64, index of the earlier proposal that each continues; -1 for the root.
        scores: `[B, K]` float32, cumulative log-probabilities; no child scores above its parent.
        most: number of proposals to keep.

    Returns:
        Tokens, parents and scores, `[B, most]`; unchanged if K <= most.
    """
    if tokens.shape[1] <= most:
        return tokens, parents, scores
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :most]
    at = best.sort(1).values
    tokens, parents, scores = (x.gather(1, at) for x in (tokens, parents, scores))
    return tokens, torch.where(parents < 0, -1, torch.searchsorted(at, parents)), scores
