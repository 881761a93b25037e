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
    source: Annotated[Path, typer.Argument(help="Checkpoint folder to read.", callback=home)],
    out: Annotated[Path, typer.Argument(help="New folder to write.", callback=home)],
    target: Annotated[
        str, typer.Option(help="The model that the drafter was trained for.", callback=home)
    ] = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    exit_layer: Annotated[
        int | None, typer.Option(help="For Kangaroo: number of target layers before the adapter.")
    ] = None,
    layers: Annotated[
        str,
        typer.Option(help="For EAGLE-3: the target layers that it reads, comma-separated."),
    ] = "",
    to: Annotated[Layout, typer.Option(help="Format to write; own is specdec's.")] = Layout.own,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the mapping of tensors and write nothing.")
    ] = False,
) -> None:
    """Convert drafter checkpoints between formats.

    Reads checkpoints of Apple's ReDrafter, ModelOpt, Medusa, Kangaroo, EAGLE-3 and speculators, and writes specdec's
    format; or reads specdec's format and writes any of these but ModelOpt's.
    """
    named = [int(layer) for layer in numbers("layers", layers, int)]
    if not dry_run:
        check_new_folder(out, "out")  # before the model is loaded, which takes seconds

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
