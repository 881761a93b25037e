"""What a node and a millisecond must bring in, from what a pass costs."""

from __future__ import annotations

from typing import NamedTuple

from ..limits import check_max_nodes
from .line import CostLine

# (to be measured)
LONGER = 1.45
MOST_NODES, LEAST_NODES = 64, 3
MOST_WIDTH = 8


class Price(NamedTuple):
    """What drafting is worth in a round of so many rows."""

    node: float
    """Expected accepted tokens that a node must promise to pay for itself."""
    per_ms: float
    """Tokens per millisecond that all rows together bring."""
    nodes: int
    """Most nodes per row, the root included."""
    width: int
    """Beams of a search."""


def price(line: CostLine, rate: float, rows: int) -> Price:
    """Price."""
    plain = line.ms(rows)
    nodes = MOST_NODES
    while nodes > LEAST_NODES and line.ms(rows * nodes) > LONGER * plain:
        nodes -= 1
    slope = line.per_node(rows, rows * nodes)
    return Price(rate * slope / plain, rate * rows / plain, nodes, min(max(nodes // 4, 1), MOST_WIDTH))
