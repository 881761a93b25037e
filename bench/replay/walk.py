"""Rounds over whole texts with given drafts: what they write, and how long a machine takes for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.replay.drafts import Drafts
from bench.replay.positions import Positions
from bench.replay.record import FIXED_NODES, FIXED_SEARCH, STEPS
from bench.replay.tables import Table
from specdec.costs.guard import Guard


class Round(NamedTuple):
    """How rows draft in a round of so many."""

    drafts: Drafts | None
    """What the thresholds leave; None for no drafting."""
    nodes: int = FIXED_NODES
    """Most nodes per row, the root included."""
    step_mass: float = FIXED_SEARCH["min_step_prob"]
    """Probability of the beams under which no further step is taken."""
    summed: bool = True
    """Whether that probability is of all rows together, or of the row where it is highest."""
    search: float = FIXED_SEARCH["min_prob"]
    """Probability under which no beam is of use: where no row has a better one the search ends."""


@dataclass(slots=True)
class Written:
    """What was written, and in how long."""

    tokens: int = 0
    ms: float = 0.0
    rounds: int = 0
    nodes: int = 0
    """Over all rounds and rows, without padding."""
    steps: int = 0
    rested: int = 0
    """Rounds without a draft, because drafting did not pay."""

    @property
    def rate(self) -> float:
        """Tokens per millisecond."""
        return self.tokens / self.ms


Settings = Callable[[int], Round]
"""How so many rows draft."""


def walk(
    positions: Positions,
    texts: Sequence[int],
    table: Table,
    settings: Settings,
    *,
    rows: int = 1,
    refill: bool = False,
    guarded: bool = False,
) -> Written:
    """Write texts, so many rows at once.

    Args:
        positions: of all texts.
        texts: which of them, in order.
        table: what a pass and a step cost.
        settings: what rows draft, by how many of them are left.
        rows: texts in a batch; the last one may have fewer.
        refill: whether the next text begins where one ends; otherwise the next batch begins when all rows have ended.
        guarded: whether drafting rests while it does not pay; each batch is a call.
    """
    written = Written()
    waiting = list(texts)
    batch: list[list[int]] = []
    rounds: dict[int, Round] = {}
    line, guard = table.line(), Guard()
    while waiting or batch:
        if not batch or refill:
            taken, waiting = waiting[: rows - len(batch)], waiting[rows - len(batch) :]
            if not batch:
                guard = Guard()
            batch += [[int(at) for at in positions.starts[text : text + 2]] for text in taken]
        live = len(batch)
        if live not in rounds:
            rounds[live] = settings(live)
        resting = guarded and guard.resting
        how = Round(None) if resting else rounds[live]
        tokens, nodes, ms = written.tokens, written.nodes, written.ms
        _round(positions, table, how, batch, written)
        written.rested += resting
        plain = live * (written.ms - ms) / line.ms(live)
        drafted = written.nodes - nodes > live
        guard.count(written.tokens - tokens, plain, live, drafted=drafted)
        batch = [row for row in batch if row[0] < row[1]]
    return written


def _round(
    positions: Positions, table: Table, how: Round, batch: list[list[int]], written: Written
) -> None:
    at = [row[0] for row in batch]
    written.rounds += 1
    drafts = how.drafts
    if drafts is None:
        gains, widest = [1] * len(at), 1
        written.ms += float(table.times[len(at)])
    else:
        steps = steps_taken(positions, drafts, how, at)
        sizes = [min(int(drafts.size[i, steps]), how.nodes - 1) for i in at]
        right = [int(drafts.accepted[i, steps, n]) for i, n in zip(at, sizes, strict=True)]
        gains = [min(n + 1, int(positions.truth[i])) for i, n in zip(at, right, strict=True)]
        widest = max(sizes) + 1
        written.ms += float(table.times[len(at) * widest]) + table.search + table.lookup
        written.ms += steps * table.step_of(len(at))
        written.steps += steps
        written.nodes += sum(sizes)
    written.nodes += len(at)
    for row, gain in zip(batch, gains, strict=True):
        row[0] += gain
        written.tokens += gain


def steps_taken(positions: Positions, drafts: Drafts, how: Round, at: Sequence[int]) -> int:
    """Say how many steps a search over rows at these positions takes."""
    most = min(STEPS, how.nodes - 1, max(int(positions.left[i]) for i in at) - 1)
    for steps in range(1, most + 1):
        mass = [float(drafts.mass[i, steps]) for i in at]
        promising = sum(mass) if how.summed else max(mass)
        if max(float(drafts.best[i, steps]) for i in at) < how.search or promising < how.step_mass:
            return steps
    return max(most, 0)
