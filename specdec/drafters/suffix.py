"""Suffix: proposes what followed the last tokens in any text of a `Session`, the current ones included.

Training-free, after SuffixDecoding (arXiv 2411.04975): the longest suffix of a text that occurred before is looked up,
and its continuations become a tree. Here shorter matches count too, weighted by how often matches of their length were
right on other texts, and all continuations share one tree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from ..datastore.growing import GrowingIndex, KnownText
from ..model.cache import Rows
from ..model.target import Target
from ..state import State
from .parts.calibration import Calibration, calibration_of
from .parts.continuations import Trie, proposals_of
from .parts.ranges import check_between, check_shares
from .protocol import Budget, Drafter, Proposals


@dataclass(frozen=True, slots=True)
class SuffixConfig:
    """Settings of suffix drafting."""

    places: int = 16
    """Most earlier occurrences used, 1 to 1024."""
    length: int = 15
    """Most tokens taken after an occurrence, 1 to 64."""
    recency: float = 0.85
    """Weight of each further occurrence relative to the one before, above 0 to 1."""
    others: float = 0.25
    """Weight of an occurrence in another text relative to one in the same text, above 0 to 1."""
    min_prob: float | None = None
    """Least acceptance probability of a proposed node, above 0 to 1; None derives it from the cost table."""
    memory: int = 131_072
    """Most tokens kept of a session's texts, at least 1; beyond it the older half is dropped when texts start."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        check_between(self, 1, 1024, "places")
        check_between(self, 1, 64, "length")
        check_shares(self, "recency", "others", "min_prob")
        if self.memory < 1:
            raise ValueError(f"memory: expected at least 1, got {self.memory}")


class Memory:
    """The known texts of a session."""

    def __init__(self, most: int) -> None:
        """Create an empty memory of at most `most` tokens."""
        self.most = most
        self.young, self.old = GrowingIndex(), GrowingIndex()
        self.texts: dict[int, KnownText] = {}
        """The texts of the latest stream, by row."""
        self._numbers = count()

    def begin(self, texts: dict[int, list[int]], beside: Iterable[int] = ()) -> None:
        """Add texts that start, as lists that grow; beginnings that are known already are not read again.

        Args:
            texts: by row.
            beside: known rows that continue.
        """
        for text in self.texts.values():
            text.follow(self.young)
        earlier, going = list(self.texts.values()), {row: self.texts[row] for row in beside}
        begun = {row: KnownText(text, next(self._numbers)) for row, text in texts.items()}
        for text in begun.values():
            for other in earlier:
                text.part_from(other)
        # Continuing texts are not counted: dropping one would mean reading it again.
        kept = sum(len(text.places) for text in going.values())
        kept += max((len(text.places) for text in begun.values()), default=0)
        if self.young.size - kept > self.most // 2:
            self.young, self.old = GrowingIndex(), self.young
            for text in (*going.values(), *begun.values()):
                text.places = []
            for text in going.values():
                text.follow(self.young)
        self.texts = going
        for row, text in begun.items():
            for other in self.texts.values():
                text.part_from(other)
            text.follow(self.young)
            self.texts[row] = text


class SuffixDrafter(Drafter):
    """Drafts from the texts of a session."""

    def __init__(self, config: SuffixConfig | None = None) -> None:
        """Create a drafter with the default or the given configuration."""
        self.config = config or SuffixConfig()
        self._recency = self.config.recency ** np.arange(self.config.places)[:, None]
        self.calibration: Calibration = calibration_of("suffix")
        # Measured odds that the next token follows the latest match of 1, 2, … tokens.
        self._odds = np.array(self.calibration.tables["odds"])

    def start(self, state: State) -> None:
        """Read the prompts."""
        if self not in state.memory:
            state.memory[self] = Memory(self.config.memory)
        # If rows wait, they are read when they start.
        begun = range(len(state.text.host)) if state.cache.places is None else state.rows.host
        state.memory[self].begin({row: state.text.host[row] for row in begun})

    def join(self, state: State, rows: Rows) -> None:
        """Read the prompts of rows that start."""
        memory: Memory = state.memory[self]
        beside = [row for row in state.rows.host if row not in rows.host]
        memory.begin({row: state.text.host[row] for row in rows.host}, beside)

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Propose the continuations of the longest and latest matches."""
        memory: Memory = state.memory[self]
        for row in state.rows.host:
            memory.texts[row].follow(memory.young)
        tries = [self._trie(memory, row, budget) for row in state.rows.host]
        return proposals_of(tries, state.text.ids, budget.nodes - 1, budget.spent(self))

    def _trie(self, memory: Memory, row: int, budget: Budget) -> Trie:
        config, known, odds = self.config, memory.texts[row], self._odds
        length = min(config.length, budget.depth)
        if length < 1:
            return Trie.empty()
        wanted = {"most": config.places, "length": length, "matched": len(odds)}
        found = memory.young.find(known.text, known.last, known.number, **wanted)
        if memory.old.size > 1:
            found = found.joined(
                memory.old.find(known.text, 0, known.number, **wanted), config.places
            )
        if not len(found.matched):
            return Trie.empty()
        # Each correct token makes the match one longer.
        agreed = np.minimum(found.matched[:, None] + np.arange(length), len(odds))
        weights = odds[agreed - 1] * self._recency[: len(agreed)]
        weights = np.where(found.own[:, None], weights, config.others * weights)
        return Trie.of(found.continuations, weights).best(
            budget.nodes - 1, budget.least_score(config.min_prob, self.calibration)
        )


def new_drafter(target: Target, **settings: Any) -> SuffixDrafter:
    """Create the drafter; `settings` are fields of `SuffixConfig`."""
    return SuffixDrafter(SuffixConfig(**settings))
