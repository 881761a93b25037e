"""Progress of long work: a bar on a terminal, lines at intervals elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0

Show = Callable[[str, int, int, str], None]
"""Progress callback: description, amount done, total amount, and a note."""


@contextmanager
def progress() -> Iterator[Show]:
    """Show progress on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    # A separate console, so that `quiet` does not silence it.
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    watched = console.is_terminal
    last: tuple[str, float] = ("", 0.0)
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=False, disable=not watched
    ) as bar:
        task = bar.add_task("", total=None, note="")

        def show(what: str, done: int, total: int, note: str) -> None:
            nonlocal last
            bar.update(task, description=what, completed=done, total=total, note=note)
            now = time.monotonic()
            due = what != last[0] or done == total or now - last[1] >= SECONDS_BETWEEN_LINES
            if not watched and due:
                console.print(f"{what} {done}/{total} {note}".rstrip(), markup=False, emoji=False)
                last = what, now

        yield show
