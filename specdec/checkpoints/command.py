"""The command `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from ..models import DEFAULT_MODEL, load_model
from ..target import Target
from .convert import Layout, check_out, conversion_table, export_drafter, import_drafter


def convert(
    source: Annotated[Path, typer.Argument(help="A drafter's folder.")],
    out: Annotated[Path, typer.Argument(help="Where to write; a new folder.")],
    target: Annotated[
        str, typer.Option(help="The model that the drafter was trained for.")
    ] = DEFAULT_MODEL,
    exit_layer: Annotated[
        int | None, typer.Option(help="Of a Kangaroo: layers that run before the adapter.")
    ] = None,
    to: Annotated[Layout, typer.Option(help="What to write.")] = Layout.own,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the mapping alone.")] = False,
) -> None:
    """Read drafters of Apple's, ModelOpt's and Kangaroo's code, or write ours for Apple's and Kangaroo's."""
    if not dry_run:
        check_out(out)  # before seconds are spent on the model
    if to == Layout.own:
        # Half the memory, and its fingerprint is the same.
        model, _ = load_model(target, dtype=torch.bfloat16)
        conversion = import_drafter(source, Target(model), exit_layer=exit_layer)
    else:
        conversion = export_drafter(source, to)
    Console(highlight=False).print(conversion_table(conversion), soft_wrap=False)
    if not dry_run:
        conversion.write(out)
