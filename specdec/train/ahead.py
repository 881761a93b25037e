"""What a drafter that reads last hidden states learns: what the target would write 1, 2, … tokens behind the root.

At position t of a text the root is token t + 1, and the labels of step i are what the target says at position t + i: the
hidden state's own next token is known by then.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .features import Features

LABELS = ("greedy", "distribution")


class Taught(NamedTuple):
    """The labels of R steps."""

    ids: Tensor
    """`[R, k]` int64, the target's likeliest tokens, as ids of the draft vocabulary; 0 outside it."""
    probs: Tensor
    """`[R, k]` float32, their probabilities, which sum to 1, or to 0 where none can be drafted."""
    known: Tensor
    """`[R, 1]` bool, whether one of them can be drafted."""
    first: Tensor
    """`[R]` int64, the best one; -1 where it cannot be drafted."""


class Ahead:
    """Positions of texts, and the labels behind each."""

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
            labels: learn the target's `greedy` token, or its `distribution` over the likeliest tokens.
            vocabulary_size: of the target.
            draft_vocabulary: `[Vd]` int64, ascending; None for all tokens.

        Raises:
            ValueError: if `labels` is neither.
        """
        if labels not in LABELS:
            raise ValueError(f"labels: expected one of {', '.join(LABELS)}, got {labels!r}")
        self.features, self.labels = features, labels
        begins = features.begins.tolist()
        # From the position that predicts the first written token to the last one with a label.
        positions = [
            torch.arange(begin, max(end - 2, begin))
            for begin, end in zip(begins, features.ends.tolist(), strict=True)
        ]
        self.units = torch.cat(positions)
        ends = [end.expand(len(p)) for end, p in zip(features.ends, positions, strict=True)]
        self.end = torch.zeros(len(features.tokens), dtype=torch.int64)
        self.end[self.units] = torch.cat(ends)
        self.steps = torch.arange(1, length + 1)
        self.place = torch.arange(vocabulary_size)
        if draft_vocabulary is not None:
            self.place = torch.full((vocabulary_size,), -1).index_copy(
                0, draft_vocabulary.cpu(), torch.arange(len(draft_vocabulary))
            )

    def positions(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """Say where the labels of some positions are.

        Returns:
            Positions `[P, T]` int64, and which of them there are, `[P, T]` bool.
        """
        at = units[:, None] + self.steps
        real = at < self.end[units][:, None] - 1
        at = torch.where(real, at, units[:, None])
        if self.labels == "greedy":
            tokens, best = self.features.tokens[at].long(), self.features.top_ids[at, 0]
            # Behind a token that the target would not write, nothing is ever accepted.
            real[:, 1:] &= (tokens[:, 1:] == best[:, :-1]).long().cumprod(1).bool()
        return at, real

    def taught(self, at: Tensor, device: torch.device) -> Taught:
        """Look up the labels at positions `[R]`."""
        features, kept = self.features, 1 if self.labels == "greedy" else None
        ids = self.place[features.top_ids[at, :kept].long()].to(device)
        probs = features.top_probs[at, :kept].to(device) * (ids >= 0)
        probs = probs / probs.sum(-1, keepdim=True).clamp(min=1e-6)
        return Taught(ids.clamp(min=0), probs, ids.amax(1, keepdim=True) >= 0, ids[:, 0])


def cross_entropy(predicted: Tensor, here: slice, *, taught: Taught, right: Tensor) -> Tensor:
    """Compare a chunk of rows with their labels, as `chunked_cross_entropy` wants it.

    Args:
        predicted: `[r, Vd]` probabilities; the gradient at the logits afterwards.
        here: which rows these are.
        taught: labels of all rows.
        right: `[R]` float32, whether each row's best token is the target's; written.

    Returns:
        The summed loss.
    """
    ids, probs, known, first = (part[here] for part in taught)
    chosen = predicted.gather(1, ids)
    right[here] = ((chosen[:, 0] == predicted.amax(1)) & (first >= 0)).float()
    predicted *= known  # nothing is learned from tokens that cannot be drafted
    predicted.scatter_add_(1, ids, -probs.to(predicted.dtype))
    return -(probs * chosen.float().clamp(min=1e-30).log()).sum()
