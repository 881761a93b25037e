"""The command `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..checkpoints import Layout
from ..host.whole_file import check_new_folder
from ..sources.embedded import DEFAULT_MODEL
from .options import DType, RevisionOption, TrustOption, home
from .training.start import numbers


def convert(
    source: Annotated[Path, typer.Argument(help="A drafter's folder.", callback=home)],
    out: Annotated[Path, typer.Argument(help="Where to write; a new folder.", callback=home)],
    target: Annotated[
        str, typer.Option(help="The model that the drafter was trained for.", callback=home)
    ] = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    exit_layer: Annotated[
        int | None, typer.Option(help="Of a Kangaroo: layers that run before the adapter.")
    ] = None,
    layers: Annotated[
        str, typer.Option(help="Of an EAGLE-3: the target's layers that it reads, by commas.")
    ] = "",
    to: Annotated[Layout, typer.Option(help="What to write.")] = Layout.own,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the mapping alone.")] = False,
) -> None:
    """Read drafters of Apple's, ModelOpt's, Medusa's, Kangaroo's, EAGLE-3's and speculators' code, or write ours for them, ModelOpt's apart."""
    named = [int(layer) for layer in numbers("layers", layers, int)]
    if not dry_run:
        check_new_folder(out, "out")  # before seconds are spent on the model

    from ..checkpoints import conversion_table, export_drafter, import_drafter
    from ..model.target import Target
    from .loading import ModelChoice

    if to == Layout.own:
        # Half the memory, and its fingerprint is the same.
        choice = ModelChoice.of(target, revision, trust_remote_code, dtype=DType.bfloat16)
        conversion = import_drafter(
            source, Target(choice.weights()), exit_layer=exit_layer, layers=tuple(named) or None
        )
    else:
        conversion = export_drafter(source, to)
    Console(highlight=False).print(conversion_table(conversion))
    if not dry_run:
        conversion.write(out)
