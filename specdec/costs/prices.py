"""What a node and a millisecond of drafting must bring in, computed from what a pass costs; docs/how/settings.md has the replays."""

from __future__ import annotations

from typing import NamedTuple

from .line import CostLine

# The n-th best node of a tree is right in about WORTH / n^FALL of all rounds: the 8th in 10 %, the 16th in 4 %, the 32nd in 1 %
# (docs/how/settings.md). From 2 to 2.5 replayed rates differ by 1 to 2 %; with 1.6 single rows are 2 % slower, with 4 batches 5 to 6 %.
WORTH, FALL = 2.25, 1.5
# A root and its likeliest child always have their place; the 60th best node is right in 0.2 % of rounds.
LEAST_NODES, MOST_NODES = 2, 64
# Where nodes are almost free the best of all fixed settings had 8 beams; fewer than 4 cost batches up to a percent.
LEAST_WIDTH, MOST_WIDTH = 4, 8


class Price(NamedTuple):
    """What drafting has to bring in, in a round of so many rows."""

    node: float
    """Expected accepted tokens that a node must promise to pay for itself."""
    per_ms: float
    """Tokens that all rows together write per millisecond: what a millisecond of drafting must add."""
    nodes: int
    """Most nodes per row, the root included."""
    width: int
    """Beams of a search."""


def price(line: CostLine, rate: float, rows: int) -> Price:
    """Compute what drafting has to bring in.

    A drafter proposes a node from the score `node / r` on, and takes a step of `t` ms while its frontier's probability, summed over rows,
    is at least `per_ms * t / g`; r is the share of its scores that comes true, g the tokens that a step adds per unit of probability.

    Args:
        line: what a pass over all rows' nodes together costs.
        rate: tokens that the method writes in the time of a plain pass over one row, above 0.
        rows: rows that share a pass, at least 1.

    Raises:
        ValueError: if `rate` or `rows` is out of range.
    """
    if not rate > 0:
        raise ValueError(f"rate: expected a number above 0, got {rate}")
    if rows < 1:
        raise ValueError(f"rows: expected at least 1, got {rows}")
    plain = line.ms(rows)
    nodes = _nodes(line, rate / plain, rows)
    # Rows are padded to the widest, and one of them nearly always fills its places: fewer nodes of another save nothing. So a row's
    # node bears the rows-th part of what it costs.
    node = rate / plain * line.per_node(rows, rows * nodes) / rows
    width = min(max(nodes // 4, LEAST_WIDTH), MOST_WIDTH)
    return Price(node, rate * rows / plain, nodes, width)


def _nodes(line: CostLine, per_ms: float, rows: int) -> int:
    """Count the nodes per row whose last one still pays, at so many tokens per row and millisecond."""
    paid = float(MOST_NODES)
    if line.slope:
        # One more place in every row takes `rows * slope` ms: WORTH / n^FALL tokens are to pay for it.
        paid = (WORTH / (per_ms * rows * line.slope)) ** (1 / FALL)
    return round(min(max(paid, line.knee / rows, LEAST_NODES), MOST_NODES))
