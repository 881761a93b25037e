"""What drafting did for each text of a call: for callers, and for `specdec generate --explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .costs.guard import Guard
from .state import Emitted


@dataclass(slots=True)
class SourceCounts:
    """What one drafter of a union did; what two propose is counted for the first."""

    drafted: int = 0
    """Its nodes that were verified."""
    accepted: int = 0
    """Those of them that are in the text."""


@dataclass(slots=True)
class RowStatistics:
    """One text."""

    new_tokens: int = 0
    rounds: int = 0
    """Passes of the target after prefill."""
    nodes: int = 0
    """Verified, roots included."""
    drafted: int = 0
    """Verified nodes that were proposed: all but the roots."""
    accepted: int = 0
    """Tokens of the text that were proposed."""
    by_source: dict[str, SourceCounts] = field(default_factory=dict)
    """By the drafter's name."""
    rested: int = 0
    """Rounds without a draft, because drafting did not pay."""


class Statistics:
    """All texts of a call."""

    def __init__(self) -> None:
        """Begin empty."""
        self.rows: list[RowStatistics] = []
        """Per text, `prompts x copies` of them."""
        self.guard = Guard()
        """Of the call: when and why drafting stopped."""

    def begin(self, rows: int, names: Sequence[str], guard: Guard) -> None:
        """Begin a call of so many texts, drafted by drafters of these names and watched by `guard`."""
        unique = [
            name if name not in names[:at] else f"{name} ({at + 1})"
            for at, name in enumerate(names)
        ]
        self.rows = [
            RowStatistics(by_source={name: SourceCounts() for name in unique}) for _ in range(rows)
        ]
        self.guard = guard

    def count(self, emitted: list[Emitted], *, rested: bool) -> None:
        """Add a round, in which nothing was drafted if `rested`."""
        for e in emitted:
            row = self.rows[e.row]
            row.new_tokens += len(e.tokens)
            if not e.nodes:
                continue
            row.rounds += 1
            row.rested += rested
            row.nodes += e.nodes
            row.drafted += e.nodes - 1
            row.accepted += e.drafted
            sources = list(row.by_source.values())
            for source in e.sources:
                self._of(sources, source).drafted += 1
            for source in e.accepted_sources[: e.drafted]:
                self._of(sources, source).accepted += 1

    @staticmethod
    def _of(sources: list[SourceCounts], source: int) -> SourceCounts:
        """A drafter alone counts its beams or places; in a union each part has its number."""
        return sources[source if len(sources) > 1 else 0]
