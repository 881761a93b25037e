"""`CostLine`: milliseconds of a pass as a function of its nodes, constant up to a knee and then linear.

    ms              ╱        Up to the knee, a pass is bound by reading the weights; beyond it, every node takes time.
        level  ____╱         If a single node already does, the knee is at the least measured number of nodes.
                  knee       nodes

Times of equal passes differ by up to a fifth. The curve with the least sum of absolute relative errors is robust to
such outliers and never decreases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class CostLine:
    """The time of a pass: `level` milliseconds, plus `slope` for each node beyond `knee`."""

    level: float
    """Milliseconds of a pass over up to `knee` nodes."""
    knee: float
    """Number of nodes from which the time rises."""
    slope: float
    """Milliseconds per node beyond the knee, at least 0."""

    @classmethod
    def fit(cls, points: Sequence[tuple[int, float]]) -> CostLine:
        """Fit the curve with the least sum of absolute relative errors.

        Args:
            points: numbers of nodes (of all rows together) and milliseconds of a pass over them, in any order.

        Raises:
            ValueError: if there are fewer than two different numbers of nodes, or a number or a time is not above 0.
        """
        if len({nodes for nodes, _ in points}) < 2:
            raise ValueError(f"points: expected two or more numbers of nodes, got {list(points)}")
        for nodes, ms in points:
            if not (nodes > 0 and ms > 0 and math.isfinite(ms)):
                raise ValueError(f"points: expected nodes and ms above 0, got {(nodes, ms)}")
        return min(_curves(sorted(points)), key=lambda curve: curve.error(points))

    def ms(self, nodes: float) -> float:
        """Return the milliseconds of a pass over `nodes` nodes."""
        return self.level + self.slope * max(nodes - self.knee, 0.0)

    def per_node(self, first: float, last: float) -> float:
        """Return the milliseconds that a node adds, averaged from `first` to `last` nodes."""
        return (self.ms(last) - self.ms(first)) / (last - first)

    def error(self, points: Sequence[Point]) -> float:
        """Return the sum of absolute relative errors."""
        return sum(abs(self.ms(nodes) / ms - 1) for nodes, ms in points)


def _curves(points: Sequence[Point]) -> Iterator[CostLine]:
    """Yield all curves whose level is one point's time and whose line passes through two points beyond the knee.

    A curve with least absolute errors passes through as many points as it has parameters, so it is among these.
    """
    fewest = points[0][0]
    levels = sorted({ms for _, ms in points})
    for level in levels:
        yield CostLine(level, fewest, 0.0)
    for (nodes, ms), (more, longer) in combinations(points, 2):
        if more == nodes or longer <= ms:
            continue
        slope = (longer - ms) / (more - nodes)
        at_fewest = ms - slope * (nodes - fewest)
        if at_fewest > 0:
            yield CostLine(at_fewest, fewest, slope)
        for level in levels:
            if at_fewest < level <= ms:
                yield CostLine(level, nodes - (ms - level) / slope, slope)
