"""What `--explain` says: what was worth drafting on this machine, what came of it, and why drafting stopped."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.table import Table

from ..costs.guard import Guard
from ..costs.table import name_of, parts_of
from ..row_statistics import RowStatistics, Statistics
from ..session import Session


def explanation(session: Session, statistics: Statistics) -> Iterator[Table | str]:
    """Give tables and lines about the one text of a call."""
    (row,) = statistics.rows
    if session.costs is not None:
        yield prices_table(session)
    yield sources_table(row)
    yield from guard_lines(statistics.guard, row)


def prices_table(session: Session) -> Table:
    """Show what passes, drafts and steps cost, and how likely nodes must be."""
    assert session.costs is not None
    line, terms = session.costs.line, session.terms(1)
    table = _table(
        f"what pays here: a pass of 1 node {line.ms(1):.1f} ms, of {terms.nodes} nodes, the most, {line.ms(terms.nodes):.1f} ms",
        ["drafter", "ms a draft", "ms a step", "least probability of a node", "least to go on"],
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
    """Show what each drafter proposed, and what of it is in the text."""
    title = f"{row.accepted} of {row.new_tokens} tokens drafted, {row.nodes} nodes in {row.rounds} rounds"
    table = _table(title, ["drafter", "nodes", "accepted", "share"])
    for name, counts in row.by_source.items():
        share = f"{counts.accepted / counts.drafted:.0%}" if counts.drafted else "-"
        table.add_row(name, str(counts.drafted), str(counts.accepted), share)
    return table


def guard_lines(guard: Guard, row: RowStatistics) -> Iterator[str]:
    """Say when and why drafting stopped."""
    if not guard.rests:
        yield "drafting paid: it never stopped"
    for rest in guard.rests:
        yield (
            f"drafting stopped after round {rest.round}: {rest.gained} tokens in the time of "
            f"{rest.plain:.1f} plain ones, by the cost table"
        )
    if row.rested:
        yield f"rounds without a draft: {row.rested} of {row.rounds}"


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    return table
