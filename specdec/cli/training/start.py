"""From command-line options to a training: checks arguments, loads the target, runs the training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...host.progress import Show, progress
from ...host.whole_file import check_folder
from ..options import DType
from ..terminal import messages
from .options import Labels

if TYPE_CHECKING:
    from ...model.target import Target
    from ...train.run import Recipe


def check_arguments(
    data: list[Path], out: Path, run: Path, features: Path | None, exit_layers: str
) -> list[int]:
    """Check input and output paths before the model is loaded; return the exit layers.

    Raises:
        ValueError: if an argument cannot be used; names it.
    """
    for path in data:
        if path.is_dir() or not os.access(path, os.R_OK):
            raise ValueError(f"data: expected a readable store or JSONL file, got {path}")
    for folder, name in ((out, "out"), (run, "run"), (features, "features")):
        if folder is not None:
            check_folder(folder, name)
    return [int(layer) for layer in numbers("exit_layers", exit_layers, int)]


def numbers(name: str, text: str, kind: type[int] | type[float]) -> list[float]:
    """Parse comma-separated numbers; raises ValueError that names the option."""
    try:
        return [kind(number) for number in text.split(",") if number]
    except ValueError as error:
        raise ValueError(f"{name}: expected numbers by commas, got {text!r}") from error


def recipe_of(
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
    draft_vocabulary: int,
    held_out: int,
    labels: str = Labels.distribution,
) -> Recipe:
    """Build the recipe from options."""
    from ...train.loop import Schedule
    from ...train.run import Recipe

    return Recipe(
        Schedule(epochs=epochs, batch=batch, learning_rate=learning_rate, seed=seed),
        draft_vocabulary=draft_vocabulary or None,
        held_out=held_out,
        labels=labels,
    )


def load_teacher(
    model: str, revision: str | None, trust_remote_code: bool, device: str, threads: int | None
) -> Target:
    """Load the target in bfloat16."""
    from ..loading import ModelChoice

    return ModelChoice.of(
        model, revision, trust_remote_code, dtype=DType.bfloat16, device=device, threads=threads
    ).target()


def learn(
    target: Target,
    config: Any,
    data: list[Path],
    run: Path,
    out: Path,
    recipe: Recipe,
    features: Path | None,
    exit_layers: list[int],
) -> None:
    """Train with a progress bar, then print the last validation figures."""
    from ...train.run import train_drafter

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
