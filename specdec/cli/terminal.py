"""Terminal output: answers and tables go to standard output, everything else to standard error."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

console = Console(highlight=False, soft_wrap=True)
messages = Console(stderr=True, highlight=False, soft_wrap=True)


def help_alone(context: typer.Context) -> None:
    """Show the help of a command group called without a command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


def fail(message: str, code: int = 2) -> None:
    """Print an error in one line and exit."""
    line = " ".join(message.split())
    messages.print(f"specdec: {line}", style="red", markup=False, emoji=False)
    sys.exit(code)
