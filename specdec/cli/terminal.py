"""What goes to people: answers and tables on standard output, everything else on standard error."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

console = Console(highlight=False, soft_wrap=True)
messages = Console(stderr=True, highlight=False, soft_wrap=True)


def help_alone(context: typer.Context) -> None:
    """Show the help of a group that was called without a command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


def fail(message: str, code: int = 2) -> None:
    """Say in one line what is wrong, and end the program."""
    line = " ".join(message.split())
    messages.print(f"specdec: {line}", style="red", markup=False, emoji=False)
    sys.exit(code)
