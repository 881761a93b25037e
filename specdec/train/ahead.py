"""Labels for drafters that read the last hidden state: the target's predictions 1, 2, … tokens behind the root.

At position t of a text the root is token t + 1. The labels of step i are the target's predictions at position t + i.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .features import Features

LABELS = ("greedy", "distribution")


class Taught(NamedTuple):
    """Labels of R steps."""

    ids: Tensor
    """`[R, k]` int64, the target's likeliest tokens as rows of the draft vocabulary; 0 if outside."""
    probs: Tensor
    """`[R, k]` float32, their probabilities, renormalised; all 0 if none is in the draft vocabulary."""
    known: Tensor
    """`[R, 1]` bool, whether at least one is in the draft vocabulary."""
    first: Tensor
    """`[R]` int64, the best token; -1 if it is not in the draft vocabulary."""


class Ahead:
    """Training positions and the labels behind each."""

    def __init__(
        self,
        features: Features,
        *,
        length: int,
        labels: str,
        vocabulary_size: int,
        draft_vocabulary: Tensor | None,
    ) -> None:
        """Prepare.

        Args:
            features: of training texts.
            length: steps behind each root, T.
            labels: the target's `greedy` token, or its `distribution` over the likeliest tokens.
            vocabulary_size: of the target.
            draft_vocabulary: `[Vd]` int64, ascending; None for all tokens.

        Raises:
            ValueError: if `labels` is neither.
        """
        if labels not in LABELS:
            raise ValueError(f"labels: expected one of {', '.join(LABELS)}, got {labels!r}")
        self.features, self.labels = features, labels
        begins = features.begins.tolist()
        # From the position that predicts the first learned token to the last with a label.
        positions = [
            torch.arange(begin, max(end - 2, begin))
            for begin, end in zip(begins, features.ends.tolist(), strict=True)
        ]
        self.units = torch.cat(positions)
        ends = [end.expand(len(p)) for end, p in zip(features.ends, positions, strict=True)]
        self.end = torch.zeros(len(features.tokens), dtype=torch.int64)
        self.end[self.units] = torch.cat(ends)
        self.steps = torch.arange(1, length + 1)
        self.place = draft_ranks(vocabulary_size, draft_vocabulary)

    def positions(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions of labels.

        Returns:
            Positions `[P, T]` int64, and which of them lie within the text, `[P, T]` bool.
        """
        at = units[:, None] + self.steps
        real = at < self.end[units][:, None] - 1
        at = torch.where(real, at, units[:, None])
        if self.labels == "greedy":
            tokens, best = self.features.tokens[at].long(), self.features.top_ids[at, 0]
            # Behind a token that the target would not choose greedily, nothing can be accepted.
            real[:, 1:] &= (tokens[:, 1:] == best[:, :-1]).long().cumprod(1).bool()
        return at, real

    def taught(self, at: Tensor, device: torch.device) -> Taught:
        """Look up the labels at positions `[R]`."""
        features, kept = self.features, 1 if self.labels == "greedy" else None
        ids = self.place[features.top_ids[at, :kept].long()].to(device)
        probs = features.top_probs[at, :kept].to(device) * (ids >= 0)
        probs = probs / probs.sum(-1, keepdim=True).clamp(min=1e-6)
        return Taught(ids.clamp(min=0), probs, ids.amax(1, keepdim=True) >= 0, ids[:, 0])


def draft_ranks(vocabulary_size: int, draft_vocabulary: Tensor | None) -> Tensor:
    """Return the row of each token in a head over a draft vocabulary.

    Args:
        vocabulary_size: of the target.
        draft_vocabulary: `[Vd]` int64, ascending; None for all tokens.

    Returns:
        `[V]` int64; -1 where a token cannot be drafted.
    """
    rows = torch.arange(vocabulary_size)
    if draft_vocabulary is None:
        return rows
    ids = draft_vocabulary.cpu()
    return torch.full_like(rows, -1).index_copy(0, ids, rows[: len(ids)])


def cross_entropy(predicted: Tensor, here: slice, *, taught: Taught, right: Tensor) -> Tensor:
    """Compare a chunk of rows with their labels; the `Compare` of `chunked_cross_entropy`.

    Args:
        predicted: `[r, Vd]` probabilities; the gradient at the logits afterwards.
        here: the rows of the chunk.
        taught: labels of all rows.
        right: `[R]` float32, output: whether each row's best token is the target's.

    Returns:
        The summed loss.
    """
    ids, probs, known, first = (part[here] for part in taught)
    chosen = predicted.gather(1, ids)
    right[here] = ((chosen[:, 0] == predicted.amax(1)) & (first >= 0)).float()
    predicted *= known  # no gradient where no label is in the draft vocabulary
    predicted.scatter_add_(1, ids, -probs.to(predicted.dtype))
    return -(probs * chosen.float().clamp(min=1e-30).log()).sum()
