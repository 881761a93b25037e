"""What one round did, for whoever watches: viewers, records, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .state import Emitted
from .tree import Accepted, TokenTree


class VerifiedTree(NamedTuple):
    """A row's tree and what became of it, as lists; node 0 is the root."""

    row: int
    """Index of the prompt."""
    tokens: list[int]
    parents: list[int]
    scores: list[float]
    """Cumulative draft log-probabilities."""
    sources: list[int]
    """Which drafter of a union, or which beam, proposed each node; -1 for the root."""
    picked: list[int]
    """The target's own token after each node, `UNKNOWN` where the text did not come to it."""
    path: list[int]
    """The accepted nodes, the root first."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round, or a prefill, which has no tree."""

    emitted: list[Emitted]
    """What each row of the round gained."""
    seconds: dict[str, float]
    """Wall-clock seconds of each stage, as the host sees them."""
    tree: TokenTree | None = None
    """What was verified, one tree per row."""
    picked: Tensor | None = None
    """`[B, N]` int64, the target's own token after each node."""
    accepted: Accepted | None = None
    side_nodes: int = 0
    """Nodes per row that ran beside the tree."""
    draft_ms: float = 0.0
    """What the draft has cost by the cost table; 0 without one."""

    def trees(self) -> list[VerifiedTree]:
        """Read the trees from the device; none of a prefill."""
        if self.tree is None or self.picked is None or self.accepted is None:
            return []
        tree, lengths = self.tree, self.accepted.lengths.tolist()
        parts = (tree.tokens, tree.parents, tree.scores, tree.source, self.picked)
        rows = zip(*(part.tolist() for part in (*parts, self.accepted.path)), strict=True)
        sizes = tree.sizes.tolist()
        return [
            VerifiedTree(e.row, *(part[:size] for part in row[:5]), row[5][: length + 1])  # type: ignore[call-arg]
            for e, row, size, length in zip(self.emitted, rows, sizes, lengths, strict=True)
        ]


OnRound = Callable[[Round], None]
"""Told of each prefill and of every round, before its tokens are handed out."""
