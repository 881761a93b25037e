"""Milliseconds of a pass over so many nodes: a line, or two that meet at a knee, through times that are noisy.

A single pass is up to a fifth slower or faster than the next one like it. A line that leaves the least sum of absolute
relative errors does not follow such points, and can never say that more nodes take less time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

Point = tuple[float, float]

# A knee is believed where it halves the error. Noise alone lowers it to three quarters, a real knee to a fraction.
CLEARLY = 0.5


@dataclass(frozen=True, slots=True)
class CostLine:
    """Time over nodes: `slope` up to `knee`, `further` from there on."""

    knee: float
    """Nodes where the lines meet; of one line the most nodes measured."""
    at_knee: float
    """Milliseconds there."""
    slope: float
    """Milliseconds per node before the knee, at least 0."""
    further: float
    """Milliseconds per node behind it, at least 0."""

    @classmethod
    def fit(cls, points: Sequence[tuple[int, float]]) -> CostLine:
        """Choose the line that leaves the least sum of absolute relative errors.

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
        line = min(_lines(points), key=lambda line: line.error(points))
        bent = min(_bent(points), key=lambda line: line.error(points), default=line)
        return bent if bent.error(points) < CLEARLY * line.error(points) else line

    def ms(self, nodes: float) -> float:
        """Say how long a pass over so many nodes takes, in milliseconds."""
        beyond = nodes - self.knee
        return self.at_knee + beyond * (self.slope if beyond < 0 else self.further)

    def per_node(self, first: float, last: float) -> float:
        """Say how many milliseconds a node adds, on average from `first` nodes to more, `last`."""
        return (self.ms(last) - self.ms(first)) / (last - first)

    def error(self, points: Iterable[Point]) -> float:
        """Sum the absolute relative errors."""
        return sum(abs(self.ms(nodes) / ms - 1) for nodes, ms in points)


# The best line is among those that pass through as many points as they have freedom, or are level: least absolute
# errors are a linear programme, and these are its corners. There are few enough to try them all.


def _lines(points: Sequence[Point]) -> Iterator[CostLine]:
    """Give level lines through a point, and rising ones through two."""
    last = max(nodes for nodes, _ in points)
    for _, ms in points:
        yield CostLine(last, ms, 0.0, 0.0)
    for here, there in combinations(points, 2):
        slope = _slope(here, there)
        if slope is not None:
            at_last = here[1] + slope * (last - here[0])
            yield from _positive(CostLine(last, at_last, slope, slope))


def _bent(points: Sequence[Point]) -> Iterator[CostLine]:
    """Give lines that bend at a measured number of nodes, with two points or more on either side."""
    sizes = sorted({nodes for nodes, _ in points})
    for knee in sizes[1:-1]:
        before = [point for point in points if point[0] <= knee]
        behind = [point for point in points if point[0] >= knee]
        for one, other in ((before, behind), (behind, before)):
            for line in _lines(one):
                at_knee = line.ms(knee)
                slopes = {0.0} | {_slope((knee, at_knee), point) for point in other}
                for slope in slopes - {None}:
                    assert slope is not None
                    pair = (line.slope, slope) if one is before else (slope, line.slope)
                    yield from _positive(CostLine(knee, at_knee, *pair))


def _slope(here: Point, there: Point) -> float | None:
    """Return milliseconds per node between two points, None where that is not a number of at least 0."""
    if here[0] == there[0]:
        return None
    slope = (there[1] - here[1]) / (there[0] - here[0])
    return slope if slope >= 0 else None


def _positive(line: CostLine) -> Iterator[CostLine]:
    """Leave out a line by which a single node would take no time."""
    if line.ms(1) > 0:
        yield line
