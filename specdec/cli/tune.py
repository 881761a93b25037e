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

# Width of the bars, in characters.
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
        float, typer.Option(help="Seconds to spend on timing passes.", callback=between(1, 3600))
    ] = 60.0,
    out: Annotated[
        Path | None, typer.Option(help="File to save the table to as well.", callback=home)
    ] = None,
) -> None:
    """Measure this machine's cost table (times of passes and drafts) more precisely than the first load does.

    The machine should be idle meanwhile.
    """
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
            f"specdec: times of equal passes differed by {spread - 1:.0%}: the machine is busy",
            style="yellow",
        )
    if out is not None:
        costs.save(out)


def costs_table(costs: Costs) -> Table:
    """Show a cost table: measured times, the fitted line, and both as bars."""
    table = Table(
        title=", ".join(f"{name} {value}" for name, value in costs.machine.items()),
        title_justify="left",
    )
    for column in ("nodes", "ms", "line", "x one node"):
        table.add_column(column, justify="right")
    table.add_column("█ measured, │ fitted line")
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
        "a tree", f"{costs.tree:.2f}", "", "", "overhead over a single token, without the pass"
    )
    for name, cost in costs.drafts.items():
        table.add_row(name, f"{cost.fixed:.2f}", "", "", f"plus {cost.step:.2f} ms per step")
    return table
