"""`Statistics`: draft and acceptance counts per text of a call, also shown by `specdec generate --explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .costs.guard import Guard
from .state import Emitted


@dataclass(slots=True)
class SourceCounts:
    """Counts of one drafter of a union; a node that two drafters propose counts for the first."""

    drafted: int = 0
    """Verified nodes that it proposed."""
    accepted: int = 0
    """Tokens of the text that it proposed."""


@dataclass(slots=True)
class RowStatistics:
    """Counts of one text."""

    new_tokens: int = 0
    rounds: int = 0
    """Forward passes of the target after prefill."""
    nodes: int = 0
    """Verified nodes, roots included."""
    drafted: int = 0
    """Verified nodes without the roots."""
    accepted: int = 0
    """Tokens of the text that a drafter proposed."""
    by_source: dict[str, SourceCounts] = field(default_factory=dict)
    """Counts per drafter, by its name."""
    rested: int = 0
    """Rounds without a draft because drafting did not pay."""


class Statistics:
    """Counts of all texts of a call."""

    def __init__(self) -> None:
        """Create empty statistics."""
        self.rows: list[RowStatistics] = []
        """One entry per text: `prompts x copies`."""
        self.guard = Guard()
        """Records when and why drafting paused during the call."""

    def begin(self, rows: int, names: Sequence[str], guard: Guard) -> None:
        """Start a call.

        Args:
            rows: number of texts.
            names: of the drafters.
            guard: of the call.
        """
        unique = [
            name if name not in names[:at] else f"{name} ({at + 1})"
            for at, name in enumerate(names)
        ]
        self.rows = [
            RowStatistics(by_source={name: SourceCounts() for name in unique}) for _ in range(rows)
        ]
        self.guard = guard

    def count(self, emitted: list[Emitted], *, rested: bool) -> None:
        """Add a round; `rested` if nothing was drafted in it."""
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
        """Return a source's counts. In a union, `source` is the drafter's index; a single drafter numbers beams by it."""
        return sources[source if len(sources) > 1 else 0]
