"""`Metrics`: tokens per round, CTAR, nodes and time per stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .state import Emitted

CTAR_WIDTHS = range(1, 7)


@dataclass(slots=True)
class Metrics:
    """Counts and times over the rounds of one or more decodes.

    `gains[k]` is the number of tokens that round k added to a row, the target's own token included, so that
    tokens per round = 1 + sum over w of CTAR(w) (Kangaroo section 4.1).
    """

    gains: list[int] = field(default_factory=list)
    nodes: int = 0
    proposed: int = 0
    new_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds per stage, measured on the host; `prefill` includes the first token, also of rows that start later."""
    _lap: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a `with` block to a stage; subclasses may extend it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def lap(self) -> dict[str, float]:
        """Return the seconds of each stage since the previous call."""
        lap = {stage: s - self._lap.get(stage, 0.0) for stage, s in self.seconds.items()}
        self._lap = dict(self.seconds)
        return {stage: seconds for stage, seconds in lap.items() if seconds}

    def count(self, emitted: list[Emitted]) -> None:
        """Count the tokens and nodes of one round."""
        for e in emitted:
            self.new_tokens += len(e.tokens)
            if e.nodes:
                self.gains.append(len(e.tokens))
                self.nodes += e.nodes
                self.proposed += e.proposed

    def add(self, other: Metrics) -> None:
        """Add the counts and times of another decode."""
        self.gains += other.gains
        self.nodes += other.nodes
        self.proposed += other.proposed
        self.new_tokens += other.new_tokens
        for stage, seconds in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @property
    def rounds(self) -> int:
        """Number of rounds, summed over rows."""
        return len(self.gains)

    @property
    def tokens_per_round(self) -> float:
        """Mean tokens per round: the compression rate CR; 0 without rounds."""
        return sum(self.gains) / self.rounds if self.gains else 0.0

    def ctar(self, width: int) -> float:
        """Share of rounds that accepted at least `width` drafted tokens: CTAR(w), 0 without rounds."""
        return sum(gain > width for gain in self.gains) / self.rounds if self.gains else 0.0

    @property
    def nodes_per_round(self) -> float:
        """Mean nodes verified, the root included; 0 without rounds."""
        return self.nodes / self.rounds if self.gains else 0.0

    @property
    def share_removed(self) -> float:
        """Share of proposed tokens that packing merged or dropped; 0 without proposals."""
        return 1 - self.nodes / self.proposed if self.proposed else 0.0

    @property
    def prefill_seconds(self) -> float:
        """Seconds until the first token."""
        return self.seconds.get("prefill", 0.0)

    @property
    def decode_seconds(self) -> float:
        """Seconds of all stages after prefill."""
        return sum(s for stage, s in self.seconds.items() if stage != "prefill")

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second, prefill included; 0 without times."""
        total = sum(self.seconds.values())
        return self.new_tokens / total if total else 0.0
