"""Milliseconds of a pass over so many nodes: level at first, then a rising line, through times that are noisy.

    ms              ╱        Up to the knee a pass waits for the weights, whatever it computes; behind it every node
        level  ____╱         takes time. Where a single node already does, the knee is at the least that was measured.
                  knee       nodes

A single pass may take a fifth more or less than the next one like it. The curve that leaves the least sum of absolute
relative errors does not follow such points, has few ways to bend, and never says that more nodes take less time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class CostLine:
    """How long a pass takes: `level`, and `slope` for each node beyond `knee`."""

    level: float
    """Milliseconds of a pass over up to `knee` nodes."""
    knee: float
    """Nodes from which on the time rises."""
    slope: float
    """Milliseconds per node from there on, at least 0."""

    @classmethod
    def fit(cls, points: Sequence[tuple[int, float]]) -> CostLine:
        """Choose the curve that leaves the least sum of absolute relative errors.

        Args:
            points: nodes of all rows together and the milliseconds of a pass over them, in any order.

        Raises:
            ValueError: if they are of fewer than two numbers of nodes, or a number of nodes or a time is not above 0.
        """
        if len({nodes for nodes, _ in points}) < 2:
            raise ValueError(f"points: expected two numbers of nodes or more, got {list(points)}")
        for nodes, ms in points:
            if not (nodes > 0 and ms > 0 and math.isfinite(ms)):
                raise ValueError(f"points: expected nodes and ms above 0, got {(nodes, ms)}")
        return min(_curves(sorted(points)), key=lambda curve: curve.error(points))

    def ms(self, nodes: float) -> float:
        """Say how long a pass over so many nodes takes, in milliseconds."""
        return self.level + self.slope * max(nodes - self.knee, 0.0)

    def per_node(self, first: float, last: float) -> float:
        """Say how many milliseconds a node adds, on average from `first` nodes to more, `last`."""
        return (self.ms(last) - self.ms(first)) / (last - first)

    def error(self, points: Sequence[Point]) -> float:
        """Sum the absolute relative errors."""
        return sum(abs(self.ms(nodes) / ms - 1) for nodes, ms in points)


def _curves(points: Sequence[Point]) -> Iterator[CostLine]:
    """Give every curve whose level is one point's time and whose line passes through two points behind the knee.

    Where absolute errors are least, a curve passes through as many points as it has freedom: these are all there are.
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
