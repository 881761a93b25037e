"""Options of all trainings; none of it needs torch."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..options import MAX_THREADS, MAX_TRAINING_SEED, above, between, home


class Labels(StrEnum):
    """What a ReDrafter or a Medusa learns of its target."""

    distribution = "distribution"
    greedy = "greedy"


class AdapterKind(StrEnum):
    """What stands between Kangaroo's exit layer and a head."""

    attention = "attention"
    layer = "layer"
    mlp = "mlp"
    none = "none"


ModelOption = Annotated[
    str, typer.Option(help="The target: a name, a hub id, or a folder.", callback=home)
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(help="CPU threads; all cores if not given.", callback=between(1, MAX_THREADS)),
]
DataArgument = Annotated[
    list[Path], typer.Argument(help="Stores from specdec data, or JSONL files.", callback=home)
]
OutOption = Annotated[Path, typer.Option(help="Where the drafter goes.", callback=home)]
RunOption = Annotated[
    Path, typer.Option(help="Where an unfinished training is kept.", callback=home)
]
FeaturesOption = Annotated[
    Path | None, typer.Option(help="Hidden states that several trainings share.", callback=home)
]
ExitsOption = Annotated[
    str, typer.Option(help="Exit layers to collect for trainings to come, by commas.")
]
VocabularyOption = Annotated[
    int,
    typer.Option(
        help="Tokens that can be drafted, the most frequent ones; 0 for all.", callback=between(0)
    ),
]
EpochsOption = Annotated[int, typer.Option(help="Passes over the data.", callback=between(1))]
BatchOption = Annotated[
    int,
    typer.Option(
        help="Positions (ReDrafter, Medusa) or texts (the others) a step.", callback=between(1)
    ),
]
RateOption = Annotated[float, typer.Option(help="Peak learning rate.", callback=above(0))]
SeedOption = Annotated[
    int,
    typer.Option(help="Of weights and order.", callback=between(0, MAX_TRAINING_SEED)),
]
LabelsOption = Annotated[Labels, typer.Option(help="What it learns of the target.")]
HeldOutOption = Annotated[
    int, typer.Option(help="First texts of the data, to validate on.", callback=between(1))
]
