"""The command `tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..drafters import AUTO, check_drafter_name
from ..host.progress import progress
from ..host.whole_file import check_file
from ..sources.embedded import DEFAULT_MODEL
from .options import (
    DeviceOption,
    DrafterOption,
    DType,
    DTypeOption,
    ExactOption,
    ModelOption,
    RevisionOption,
    ThreadsOption,
    TrustOption,
    between,
    home,
)
from .terminal import console, messages

if TYPE_CHECKING:
    from ..costs.table import Costs

# Columns of the plot.
WIDTH = 36


def tune(
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    drafter: DrafterOption = AUTO,
    dtype: DTypeOption = DType.float32,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    exact: ExactOption = False,
    seconds: Annotated[
        float, typer.Option(help="How long passes are timed.", callback=between(1, 3600))
    ] = 60.0,
    out: Annotated[
        Path | None, typer.Option(help="A file for the table as well.", callback=home)
    ] = None,
) -> None:
    """Measure what passes and drafts cost on this machine, more exactly than at the first load; run nothing else meanwhile."""
    check_drafter_name(drafter)
    if out is not None:
        check_file(out, "out")

    from ..costs.measure import STEADY, tuned
    from ..drafters import load_drafter
    from .loading import ModelChoice

    choice = ModelChoice.of(
        model, revision, trust_remote_code, dtype=dtype, device=device, threads=threads
    )
    target = choice.target(exact=exact)
    loaded = load_drafter(drafter, target)
    with progress() as show:
        costs, spread = tuned(target, loaded, seconds, show)
    console.print(costs_table(costs))
    if spread >= STEADY:
        messages.print(
            f"specdec: passes of one size differed by {spread - 1:.0%}: something else runs on this machine",
            style="yellow",
        )
    if out is not None:
        costs.save(out)


def costs_table(costs: Costs) -> Table:
    """Show a cost table: what was measured, the line through it, and both as bars."""
    table = Table(
        title=", ".join(f"{name} {value}" for name, value in costs.machine.items()),
        title_justify="left",
    )
    for column in ("nodes", "ms", "line", "x one node"):
        table.add_column(column, justify="right")
    table.add_column("█ measured, │ line")
    line, longest = costs.line, max(max(ms, costs.line.ms(nodes)) for nodes, ms in costs.passes)
    for nodes, ms in costs.passes:
        here = line.ms(nodes)
        bar = list("█" * round(WIDTH * ms / longest))
        place = min(WIDTH, round(WIDTH * here / longest))
        bar += [" "] * (place + 1 - len(bar))
        bar[place] = "│"
        table.add_row(
            str(nodes), f"{ms:.1f}", f"{here:.1f}", f"{here / line.ms(1):.2f}", "".join(bar)
        )
    table.add_row(
        "a tree", f"{costs.tree:.2f}", "", "", "more than a single token, beside its pass"
    )
    for name, cost in costs.drafts.items():
        table.add_row(name, f"{cost.fixed:.2f}", "", "", f"{cost.step:.2f} ms more per step")
    return table
