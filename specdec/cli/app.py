"""The command line's entry point: registers all commands and reports errors."""

from __future__ import annotations

import io
import sys

import typer

from ..host.reasons import reason
from .bench import bench
from .calibrate import calibrate
from .convert import convert
from .data import data
from .datastore import app as datastore
from .info import info
from .terminal import fail, help_alone
from .train import app as train
from .tune import tune
from .write import chat, generate

# Typer's error for wrong command-line usage.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Lossless speculative decoding for Hugging Face models.",
)
for command in (generate, chat, bench, info, tune, calibrate, data, convert):
    app.command()(command)
app.add_typer(train, name="train")
app.add_typer(datastore, name="datastore")
app.callback(invoke_without_command=True)(help_alone)


def main() -> None:
    """Run the command line; wrong input prints one line on standard error and exits with code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for terminals without UTF-8
    if sys.stdin is None:  # closed by the parent process
        sys.stdin = io.StringIO()
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        fail(f"{error.format_message()} (see {_command(error)} --help)")  # type: ignore[attr-defined]
    except OSError as error:
        fail(f"{error.filename}: {reason(error)}" if error.filename else reason(error))
    except (MemoryError, ValueError) as error:
        fail(str(error) or "memory: expected enough for this command, got none left")
    sys.exit(code)


def _command(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return "specdec" if context is None else context.command_path
