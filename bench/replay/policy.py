"""Settings to replay: fixed ones, those that the session has, and those computed from a machine's costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bench.replay.drafts import Drafts, Thresholds, draft
from bench.replay.positions import Array, Positions
from bench.replay.record import FIXED_NODES, FIXED_SEARCH
from bench.replay.tables import Table
from bench.replay.walk import Round, Settings, Written, steps_taken, walk
from specdec.costs.line import CostLine
from specdec.costs.prices import price

STEP_MASS = FIXED_SEARCH["min_step_prob"]
# Of a pass of several rows on a CPU, and the least per row: what the session had when the texts were recorded. Elsewhere each row
# has `FIXED_NODES`.
PASS_NODES, LEAST_NODES = 8, 2
# Scores about which a threshold decides.
SCORES = (0.02, 0.3)
# Frontiers about which a step decides.
MASSES = (0.2, 0.6)


class Fitted(NamedTuple):
    """What the formula must know of a method, beside a machine's costs."""

    rate: float
    """Tokens in the time of a plain pass."""
    search: float
    """Share of the search's raw scores that comes true."""
    lookup: float
    """Share of lookup's raw scores that comes true."""
    step: float
    """Tokens that a further step adds, per unit of the frontier's probability."""


class Fixed(NamedTuple):
    """A setting of constants."""

    thresholds: Thresholds = Thresholds()
    step_mass: float = STEP_MASS
    nodes: int = FIXED_NODES
    """Most nodes of a pass; rows share them."""
    least: int = LEAST_NODES
    """Of these each row has at least so many."""

    def nodes_of(self, rows: int) -> int:
        return min(64, max(self.nodes // rows, self.least))


class Replay:
    """Texts to write with one setting after another."""

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self.drafts = lru_cache(maxsize=256)(lambda thresholds: draft(positions, thresholds))

    def write(
        self,
        texts: Sequence[int],
        table: Table,
        settings: Settings,
        *,
        rows: int = 1,
        refill: bool = False,
        guarded: bool = False,
    ) -> Written:
        """Write texts; arguments as in `walk`."""
        how = {"rows": rows, "refill": refill, "guarded": guarded}
        return walk(self.positions, texts, table, settings, **how)

    def plain(self, rows: int) -> Round:
        """Draft nothing."""
        return Round(None)

    def today(self, table: Table) -> Settings:
        """Draft as the session did with its constants, which ask for the row with the likeliest beams."""

        def settings(rows: int) -> Round:
            shared = rows > 1 and table.on_cpu
            fixed = Fixed(nodes=PASS_NODES) if shared else Fixed(least=FIXED_NODES)
            return self.fixed(fixed)(rows)._replace(summed=False)

        return settings

    def fixed(self, fixed: Fixed) -> Settings:
        """Draft with constants."""
        drafts = self.drafts(fixed.thresholds)
        least = fixed.thresholds.search
        return lambda rows: Round(drafts, fixed.nodes_of(rows), fixed.step_mass, True, least)

    def computed(self, table: Table, fitted: Fitted, line: CostLine | None = None) -> Settings:
        """Draft as the formula says, of this line or of the table's own."""
        known = line or table.line()

        def settings(rows: int) -> Round:
            worth = price(known, fitted.rate, rows)
            search, lookup = worth.node / fitted.search, worth.node / fitted.lookup
            drafts = self.drafts(Thresholds(worth.width, search, lookup))
            step_mass = worth.per_ms * table.step_of(rows) / fitted.step
            return Round(drafts, worth.nodes, step_mass, True, search)

        return settings

    def visited(self, texts: Sequence[int], how: Round) -> Array:
        """List the positions that become roots where single rows draft so."""
        assert how.drafts is not None
        roots = []
        for text in texts:
            at, end = (int(place) for place in self.positions.starts[text : text + 2])
            while at < end:
                roots.append(at)
                at += self.gain(at, how.drafts, how)
        return np.array(roots)

    def gain(self, at: int, drafts: Drafts, how: Round) -> int:
        """Say how many tokens a round gains a single row at this position."""
        steps = steps_taken(self.positions, drafts, how, [at])
        nodes = min(int(drafts.size[at, steps]), how.nodes - 1)
        right = int(drafts.accepted[at, steps, nodes])
        return min(right + 1, int(self.positions.truth[at]))
