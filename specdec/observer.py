"""`Round`: the record of one round that `on_round` receives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .state import Emitted
from .tree import Accepted, TokenTree


class VerifiedTree(NamedTuple):
    """A row's verified tree as lists; node 0 is the root."""

    row: int
    """Index of the prompt."""
    tokens: list[int]
    parents: list[int]
    scores: list[float]
    """Cumulative draft log-probabilities."""
    sources: list[int]
    """Index of the drafter in a union, or of the beam, that proposed each node; -1 for the root."""
    picked: list[int]
    """The target's token after each node; `UNKNOWN` (-1) at nodes that the text did not reach."""
    path: list[int]
    """The accepted nodes, the root first."""


@dataclass(frozen=True, slots=True)
class Round:
    """A round or a prefill; a prefill has no tree."""

    emitted: list[Emitted]
    """New tokens of each row."""
    seconds: dict[str, float]
    """Wall-clock seconds of each stage, measured on the host."""
    tree: TokenTree | None = None
    """The verified trees, one per row."""
    picked: Tensor | None = None
    """`[B, N]` int64, the target's token after each node."""
    accepted: Accepted | None = None
    side_nodes: int = 0
    """Side nodes per row: nodes in the same pass that are not part of the tree."""
    draft_ms: float = 0.0
    """Milliseconds of the draft by the cost table; 0 without one."""

    def trees(self) -> list[VerifiedTree]:
        """Copy the trees to the host, which waits for the device; an empty list for a prefill."""
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
"""Callback that receives each prefill and each round before its tokens are emitted."""
