"""Least gains of a node and of a millisecond of drafting, from the cost of a pass (replays: docs/how/settings.md)."""

from __future__ import annotations

from typing import NamedTuple

from .line import CostLine

# The n-th best node of a tree is accepted in about WORTH / n^FALL of all rounds: the 8th in 10 %, the 16th in 4 %, the 32nd in
# 1 % (docs/how/settings.md). Replayed rates with WORTH from 2 to 2.5 differ by 1 to 2 %; with 1.6 single rows are 2 % slower,
# with 4 batches are 5 to 6 % slower.
WORTH, FALL = 2.25, 1.5
# At least the root and its most likely child; at most 64, as the 60th best node is accepted in 0.2 % of rounds.
LEAST_NODES, MOST_NODES = 2, 64
# Beams. If nodes are almost free, 8 beams are the best fixed setting; fewer than 4 make batches up to 1 % slower.
LEAST_WIDTH, MOST_WIDTH = 4, 8


class Price(NamedTuple):
    """Least gains of drafting in a round with a given number of rows."""

    node: float
    """Expected accepted tokens that a node must bring to be worth its time."""
    per_ms: float
    """Tokens of all rows per millisecond of decoding; a millisecond of drafting must add as many."""
    nodes: int
    """Most nodes per row, the root included."""
    width: int
    """Number of beams."""


def price(line: CostLine, rate: float, rows: int) -> Price:
    """Compute the least gains of drafting.

    A drafter proposes nodes with a probability of at least `node / r`, and takes a step of `t` ms while the probability of
    its beams, summed over rows, is at least `per_ms * t / g`. r is `Calibration.share`, g is `Calibration.step_gain`.

    Args:
        line: cost of a pass over all rows' nodes together.
        rate: tokens that the method generates in the time of a plain pass over one row, above 0.
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
    # Rows are padded to the widest, and one row nearly always uses all nodes, so fewer nodes in another save nothing. A
    # node's price is therefore its cost divided by the number of rows.
    node = rate / plain * line.per_node(rows, rows * nodes) / rows
    width = min(max(nodes // 4, LEAST_WIDTH), MOST_WIDTH)
    return Price(node, rate * rows / plain, nodes, width)


def _nodes(line: CostLine, per_ms: float, rows: int) -> int:
    """Return the most nodes per row whose last one still pays, at `per_ms` tokens per row and millisecond."""
    paid = float(MOST_NODES)
    if line.slope:
        # One more node in every row takes `rows * slope` ms, and brings WORTH / n^FALL tokens.
        paid = (WORTH / (per_ms * rows * line.slope)) ** (1 / FALL)
    return round(min(max(paid, line.knee / rows, LEAST_NODES), MOST_NODES))
