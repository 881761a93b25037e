"""Options shared by all training commands; does not import torch."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..options import MAX_THREADS, MAX_TRAINING_SEED, above, between, home


class Labels(StrEnum):
    """Labels for ReDrafter and Medusa."""

    distribution = "distribution"
    greedy = "greedy"


class AdapterKind(StrEnum):
    """Adapter between Kangaroo's exit layer and the head."""

    attention = "attention"
    layer = "layer"
    mlp = "mlp"
    none = "none"


ModelOption = Annotated[
    str, typer.Option(help="Target model: a name, a hub id or a folder.", callback=home)
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(help="CPU threads; default: all cores.", callback=between(1, MAX_THREADS)),
]
DataArgument = Annotated[
    list[Path],
    typer.Argument(
        help="Training text: stores written by `specdec data`, or JSONL files.", callback=home
    ),
]
OutOption = Annotated[Path, typer.Option(help="Output folder of the drafter.", callback=home)]
RunOption = Annotated[
    Path,
    typer.Option(
        help="Folder of the training state; the same command resumes from it.", callback=home
    ),
]
FeaturesOption = Annotated[
    Path | None,
    typer.Option(help="Folder of hidden states, shared by several trainings.", callback=home),
]
ExitsOption = Annotated[
    str, typer.Option(help="Further exit layers to collect for later trainings, comma-separated.")
]
VocabularyOption = Annotated[
    int,
    typer.Option(
        help="Size of the draft vocabulary (the most frequent tokens); 0: all tokens.",
        callback=between(0),
    ),
]
EpochsOption = Annotated[int, typer.Option(help="Epochs.", callback=between(1))]
BatchOption = Annotated[
    int,
    typer.Option(
        help="Batch size: positions (ReDrafter, Medusa) or texts (Kangaroo, EAGLE-3).",
        callback=between(1),
    ),
]
RateOption = Annotated[float, typer.Option(help="Peak learning rate.", callback=above(0))]
SeedOption = Annotated[
    int,
    typer.Option(
        help="Seed of initial weights and of the order of the data.",
        callback=between(0, MAX_TRAINING_SEED),
    ),
]
LabelsOption = Annotated[
    Labels, typer.Option(help="Labels: the target's distribution, or its greedy token.")
]
HeldOutOption = Annotated[
    int,
    typer.Option(
        help="Number of texts held out for validation (the first of the data).", callback=between(1)
    ),
]
