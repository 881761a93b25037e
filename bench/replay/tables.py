"""Tables of cost: what a pass over so many nodes takes, and a drafter's own time, in milliseconds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bench import ROOT
from bench.replay.positions import Array
from specdec.costs.line import CostLine

TABLES = ROOT / "bench" / "results" / "replay_tables.json"
# As many nodes as a machine's passes are timed with.
POINTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MOST = 8 * 64


@dataclass(frozen=True, slots=True)
class Table:
    """One machine."""

    name: str
    passes: dict[int, float]
    """Nodes of all rows together, and the time of a pass over them."""
    step: float
    """A step of the search for a single row; of more rows it takes longer as a pass does."""
    search: float
    """What a search takes beside its steps."""
    lookup: float
    """What lookup takes."""
    on_cpu: bool = True
    """Whether the session lets rows share a number of nodes there."""
    times: Array = field(init=False, repr=False)
    """`[MOST + 1]`, a pass over so many nodes: lines between those that were measured, and the last one goes on."""

    def __post_init__(self) -> None:
        """Join the measured points."""
        nodes = np.array(sorted(self.passes))
        ms = np.array([self.passes[int(n)] for n in nodes])
        wanted = np.arange(MOST + 1)
        slope = (ms[-1] - ms[-2]) / (nodes[-1] - nodes[-2])
        times = np.interp(wanted, nodes, ms) + np.maximum(wanted - nodes[-1], 0) * slope
        object.__setattr__(self, "times", times)

    def points(self) -> list[tuple[int, float]]:
        """Give what timing this machine's passes would show, without noise."""
        return [(nodes, float(self.times[nodes])) for nodes in POINTS]

    def line(self) -> CostLine:
        """Fit the line."""
        return CostLine.fit(self.points())

    def step_of(self, rows: int) -> float:
        """Say how long a step of so many rows takes."""
        return float(self.step * self.times[rows] / self.times[1])


def load_tables() -> list[Table]:
    found: list[dict[str, Any]] = json.loads(TABLES.read_text(encoding="utf-8"))["tables"]
    return [
        Table(one["name"], {int(n): ms for n, ms in one["passes"].items()}, one["step"], one["search"], one["lookup"], one["on_cpu"])
        for one in found
    ]  # fmt: skip


def noisy(points: list[tuple[int, float]], share: float, seed: int) -> list[tuple[int, float]]:
    """Let every time be wrong by a factor of its own, whose logarithm has the deviation `share`."""
    factors = np.exp(np.random.default_rng(seed).normal(0, share, len(points)))
    return [(nodes, ms * float(factor)) for (nodes, ms), factor in zip(points, factors, strict=True)]  # fmt: skip


def steeper(line: CostLine, factor: float) -> CostLine:
    """Return a line that rises faster, and the same time of a single node."""
    return replace(line, slope=factor * line.slope)
