"""Options shared by several commands, with their checks; needs no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..drafters.names import SHOWN
from ..limits import MAX_NODES, MAX_SEED
from ..sources.embedded import EMBEDDED

# More threads do not help, and libraries abort the process if they cannot start them.
MAX_THREADS = max(256, os.cpu_count() or 1)
# Largest seed of training (weights and data order) and of generated training text.
MAX_TRAINING_SEED = 2**32 - 1


class DType(StrEnum):
    """Data types of the weights."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Check = Callable[[typer.CallbackParam, Any], Any]


def between(least: float, most: float = math.inf) -> Check:
    """Create a check that a number is within bounds; infinity and NaN never are."""
    bounds = f"at least {least}" if most == math.inf else f"{least} to {most}"
    return _check(lambda value: least <= value <= most, bounds)


def above(least: float) -> Check:
    """Create a check that a number is finite and greater than `least`."""
    return _check(lambda value: value > least, f"above {least}")


def _check(fits: Callable[[float], bool], bounds: str) -> Check:
    def check(param: typer.CallbackParam, value: Any) -> Any:
        if value is not None and not (fits(value) and value < math.inf):
            raise ValueError(f"{param.name}: expected {bounds}, got {value}")
        return value

    return check


def home(value: Any) -> Any:
    """Expand a leading `~`, which shells do not expand after a `=`."""
    if isinstance(value, list):
        return [home(one) for one in value]
    # `Path.expanduser` would also normalise the rest of the text.
    return None if value is None else type(value)(os.path.expanduser(value))  # noqa: PTH111


ModelOption = Annotated[
    str,
    typer.Option(help=f"{' or '.join(EMBEDDED)} (built in), a hub id, or a folder.", callback=home),
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the model. Read it first.",
    ),
]
DrafterOption = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(SHOWN)}, a checkpoint folder, or several joined by +.",
        callback=home,
    ),
]
DTypeOption = Annotated[DType, typer.Option(help="Data type of the weights.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, mps, cuda, cuda:1, …")]
ThreadsOption = Annotated[
    int | None,
    typer.Option(help="CPU threads. Default: torch's choice.", callback=between(1, MAX_THREADS)),
]
ExactOption = Annotated[
    bool,
    typer.Option("--exact", help="Bit-exact results in bfloat16; an error if not possible here."),
]
NodesOption = Annotated[
    int | None,
    typer.Option(
        help=f"Most tree nodes verified per round, 1 to {MAX_NODES}. Default: from the cost table.",
        callback=between(1, MAX_NODES),
    ),
]
CostsOption = Annotated[
    Path | None,
    typer.Option(
        help="Cost table of `specdec tune --out`. Default: this machine's table.", callback=home
    ),
]
NewTokensOption = Annotated[int, typer.Option(help="Most new tokens.", callback=between(1))]
TemperatureOption = Annotated[
    float,
    typer.Option(help="Sampling temperature; 0 for greedy decoding.", callback=between(0)),
]
TopPOption = Annotated[float, typer.Option(help="Top-p (nucleus) sampling, above 0 to 1.")]
SeedOption = Annotated[
    int | None,
    typer.Option(
        help="Sampling seed; the same seed gives the same text.", callback=between(0, MAX_SEED)
    ),
]


def check_sampling(temperature: float, top_p: float, seed: int | None) -> None:
    """Raise ValueError for sampling settings that contradict each other."""
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected above 0 to 1, got {top_p}")
    if temperature == 0:
        for name, value, unset in (("seed", seed, None), ("top_p", top_p, 1.0)):
            if value != unset:
                raise ValueError(f"{name}: expected none at temperature 0, got {value}")
