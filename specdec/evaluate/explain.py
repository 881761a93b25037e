"""The output of `--explain`: costs and thresholds, draft and acceptance counts, and pauses of drafting."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.table import Table

from ..costs.guard import Guard
from ..costs.table import name_of, parts_of
from ..row_statistics import RowStatistics, Statistics
from ..session import Session


def explanation(session: Session, statistics: Statistics) -> Iterator[Table | str]:
    """Yield tables and lines about a call with one text."""
    (row,) = statistics.rows
    if session.costs is not None:
        yield prices_table(session)
    yield sources_table(row)
    yield from guard_lines(statistics.guard, row)


def prices_table(session: Session) -> Table:
    """Show the costs of passes, drafts and steps, and the least probabilities that follow from them."""
    assert session.costs is not None
    line, terms = session.costs.line, session.terms(1)
    table = _table(
        f"costs here: a pass of 1 node {line.ms(1):.1f} ms, of {terms.nodes} nodes (the most) {line.ms(terms.nodes):.1f} ms",
        ["drafter", "ms per draft", "ms per step", "least probability of a node", "of a step"],
    )
    for part in parts_of(session.drafter):
        cost, known = terms.costs[part], part.calibration
        assert known is not None
        config = getattr(part, "config", None)
        least = math.exp(terms.least_score(getattr(config, "min_prob", None), known))
        go_on = terms.least_to_go_on(getattr(config, "min_step_prob", None), part, known)
        steps = (
            (f"{cost.step:.2f}", f"{least:.3f}", f"{go_on:.3f}")
            if cost.step
            else ("", f"{least:.3f}", "")
        )
        table.add_row(name_of(part), f"{cost.fixed:.2f}", *steps)
    return table


def sources_table(row: RowStatistics) -> Table:
    """Show the verified and the accepted nodes of each drafter."""
    title = f"{row.accepted} of {row.new_tokens} tokens drafted, {row.nodes} nodes in {row.rounds} rounds"
    table = _table(title, ["drafter", "nodes", "accepted", "share"])
    for name, counts in row.by_source.items():
        share = f"{counts.accepted / counts.drafted:.0%}" if counts.drafted else "-"
        table.add_row(name, str(counts.drafted), str(counts.accepted), share)
    return table


def guard_lines(guard: Guard, row: RowStatistics) -> Iterator[str]:
    """Yield when and why drafting paused."""
    if not guard.rests:
        yield "drafting paid: it never paused"
    for rest in guard.rests:
        yield (
            f"drafting paused after round {rest.round}: {rest.gained} tokens in the time of "
            f"{rest.plain:.1f} tokens of plain decoding, by the cost table"
        )
    if row.rested:
        yield f"rounds without a draft: {row.rested} of {row.rounds}"


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    return table
