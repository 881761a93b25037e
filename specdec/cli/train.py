"""The command `train`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..drafters.methods import METHODS
from ..host.progress import Show, progress
from ..host.whole_file import check_folder
from ..sources.embedded import DEFAULT_MODEL
from .options import (
    MAX_THREADS,
    MAX_TRAINING_SEED,
    DeviceOption,
    DType,
    RevisionOption,
    TrustOption,
    above,
    between,
    home,
    numbers,
)
from .terminal import help_alone, messages

if TYPE_CHECKING:
    from ..model.target import Target
    from ..train.run import Recipe

app = typer.Typer(help="Train a drafter on text that its target wrote; goes on after a kill.")
app.callback(invoke_without_command=True)(help_alone)


class Labels(StrEnum):
    """What a ReDrafter learns of its target."""

    distribution = "distribution"
    greedy = "greedy"


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
    typer.Option(help="Positions (ReDrafter) or texts (the others) a step.", callback=between(1)),
]
RateOption = Annotated[float, typer.Option(help="Peak learning rate.", callback=above(0))]
SeedOption = Annotated[
    int,
    typer.Option(help="Of weights and order.", callback=between(0, MAX_TRAINING_SEED)),
]
HeldOutOption = Annotated[
    int, typer.Option(help="First texts of the data, to validate on.", callback=between(1))
]


@app.command(help=f"Train {METHODS['redrafter'].help}.")
def redrafter(
    data: DataArgument,
    out: OutOption,
    run: RunOption,
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    exit_dim: Annotated[
        int | None,
        typer.Option(
            help="Width of the blocks; twice the target's if not given.", callback=between(1, 65536)
        ),
    ] = None,
    residual_blocks: Annotated[
        int, typer.Option(help="How many blocks.", callback=between(0, 64))
    ] = 2,
    own_head: Annotated[
        bool, typer.Option("--own-head", help="A head of its own, as in the paper.")
    ] = False,
    length: Annotated[
        int, typer.Option(help="Tokens ahead that are learned.", callback=between(1, 64))
    ] = 5,
    beam_width: Annotated[
        int | None,
        typer.Option(
            help="Beams, when it drafts; what pays if not given.", callback=between(1, 64)
        ),
    ] = None,
    min_prob: Annotated[
        float | None,
        typer.Option(
            "--min-prob",
            "--least",
            help="Probability under which a node is not verified; what pays if not given.",
            callback=between(0, 1),
        ),
    ] = None,
    min_step_prob: Annotated[
        float | None,
        typer.Option(
            "--min-step-prob",
            "--least-step",
            help="Probability of all beams under which drafting ends; what pays if not given.",
            callback=between(0, 1),
        ),
    ] = None,
    labels: Annotated[Labels, typer.Option(help="What it learns of the target.")] = (
        Labels.distribution
    ),
    draft_vocabulary: VocabularyOption = 8192,
    epochs: EpochsOption = 4,
    batch: BatchOption = 512,
    learning_rate: RateOption = 2e-3,
    held_out: HeldOutOption = 24,
    seed: SeedOption = 0,
    features: FeaturesOption = None,
    exit_layers: ExitsOption = "",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Train a ReDrafter by local distillation."""
    layers = _check_arguments(data, out, run, features, exit_layers)

    from ..drafters.redrafter import ReDrafterConfig
    from ..train.loop import Schedule
    from ..train.run import Recipe
    from .loading import ModelChoice

    recipe = Recipe(
        Schedule(epochs=epochs, batch=batch, learning_rate=learning_rate, seed=seed),
        draft_vocabulary=draft_vocabulary or None,
        held_out=held_out,
        labels=labels,
    )
    target = ModelChoice.of(
        model, revision, trust_remote_code, dtype=DType.bfloat16, device=device, threads=threads
    ).target()
    width = target.config.hidden_size
    config = ReDrafterConfig(
        hidden_size=width,
        exit_dim=2 * width if exit_dim is None else exit_dim,
        residual_blocks=residual_blocks,
        tied_head=not own_head,
        trained_length=length,
        draft_length=length,
        beam_width=beam_width,
        min_prob=min_prob,
        min_step_prob=min_step_prob,
    )
    _train(target, config, data, run, out, recipe, features, layers)


@app.command(help=f"Train {METHODS['kangaroo'].help}.")
def kangaroo(
    data: DataArgument,
    out: OutOption,
    run: RunOption,
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    exit_layer: Annotated[int, typer.Option(help="Layers that draft.", callback=between(1))] = 2,
    kv_heads: Annotated[
        int | None,
        typer.Option(help="As many as query heads if not given.", callback=between(1)),
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option(
            help="Probability under which a token is a draft's last, 0.6 in the paper; what pays if not given.",
            callback=between(0),
        ),
    ] = None,
    gamma: Annotated[int, typer.Option(help="Most tokens of a draft.", callback=between(1))] = 6,
    draft_vocabulary: VocabularyOption = 8192,
    epochs: EpochsOption = 4,
    batch: BatchOption = 8,
    learning_rate: RateOption = 1e-2,
    held_out: HeldOutOption = 24,
    seed: SeedOption = 0,
    features: FeaturesOption = None,
    exit_layers: ExitsOption = "",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Train a Kangaroo adapter by self-distillation."""
    layers = _check_arguments(data, out, run, features, exit_layers)

    from ..drafters.kangaroo import KangarooConfig
    from ..train.loop import Schedule
    from ..train.run import Recipe
    from .loading import ModelChoice

    recipe = Recipe(
        Schedule(epochs=epochs, batch=batch, learning_rate=learning_rate, seed=seed),
        draft_vocabulary=draft_vocabulary or None,
        held_out=held_out,
    )
    target = ModelChoice.of(
        model, revision, trust_remote_code, dtype=DType.bfloat16, device=device, threads=threads
    ).target()
    heads = target.config.num_attention_heads
    config = KangarooConfig(
        hidden_size=target.config.hidden_size,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=target.config.hidden_size // heads,
        exit_layer=exit_layer,
        eta=eta,
        gamma=gamma,
    )
    _train(target, config, data, run, out, recipe, features, layers)


@app.command(help=f"Train {METHODS['eagle3'].help}.")
def eagle3(
    data: DataArgument,
    out: OutOption,
    run: RunOption,
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    layers: Annotated[
        str,
        typer.Option(
            help="Layers that it reads, by commas; a low, a middle and a high one if not given."
        ),
    ] = "",
    intermediate_size: Annotated[
        int | None,
        typer.Option(help="Of its MLP; the target's if not given.", callback=between(1, 262144)),
    ] = None,
    depth: Annotated[
        int, typer.Option(help="Most tokens of a draft.", callback=between(1, 16))
    ] = 6,
    width: Annotated[
        int | None,
        typer.Option(
            help="Beams, when it drafts; what pays if not given.", callback=between(1, 16)
        ),
    ] = None,
    draft_vocabulary: VocabularyOption = 8192,
    epochs: EpochsOption = 4,
    batch: BatchOption = 8,
    learning_rate: RateOption = 1e-3,
    held_out: HeldOutOption = 24,
    seed: SeedOption = 0,
    features: FeaturesOption = None,
    exit_layers: ExitsOption = "",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Train an EAGLE-3 by training-time test."""
    further = _check_arguments(data, out, run, features, exit_layers)
    named = tuple(numbers("layers", layers)) or None

    from ..drafters.eagle3 import Eagle3Config
    from ..train.loop import Schedule
    from ..train.run import Recipe
    from .loading import ModelChoice

    recipe = Recipe(
        Schedule(epochs=epochs, batch=batch, learning_rate=learning_rate, seed=seed),
        draft_vocabulary=draft_vocabulary or None,
        held_out=held_out,
    )
    target = ModelChoice.of(
        model, revision, trust_remote_code, dtype=DType.bfloat16, device=device, threads=threads
    ).target()
    config = Eagle3Config.beside(
        target.config, named, intermediate_size=intermediate_size, depth=depth, width=width
    )
    _train(target, config, data, run, out, recipe, features, further)


def _check_arguments(
    data: list[Path], out: Path, run: Path, features: Path | None, exit_layers: str
) -> list[int]:
    """Check what is read and written, before seconds are spent on the model; return the exit layers."""
    for path in data:
        if path.is_dir() or not os.access(path, os.R_OK):
            raise ValueError(f"data: expected a readable store or JSONL file, got {path}")
    for folder, name in ((out, "out"), (run, "run"), (features, "features")):
        if folder is not None:
            check_folder(folder, name)
    return numbers("exit_layers", exit_layers)


def _train(
    target: Target,
    config: Any,
    data: list[Path],
    run: Path,
    out: Path,
    recipe: Recipe,
    features: Path | None,
    exit_layers: list[int],
) -> None:
    from ..train.run import train_drafter

    with progress() as show:
        log = train_drafter(
            target, config, data, run, out, recipe,
            features=features, exit_layers=exit_layers, progress=_with_figures(show),
        )  # fmt: skip
    last = next(line["validation"] for line in reversed(log) if "validation" in line)
    messages.print(f"{out}: {json.dumps({k: round(v, 3) for k, v in last.items()})}", markup=False)


def _with_figures(show: Show) -> Callable[[str, int, int, dict[str, float]], None]:
    def tell(what: str, done: int, total: int, figures: dict[str, float]) -> None:
        show(what, done, total, " ".join(f"{name} {value:.3f}" for name, value in figures.items()))

    return tell
