"""Options that several commands share, and what their values may be; none of it needs torch."""

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

# More never help, and libraries end the whole process where so many cannot be started.
MAX_THREADS = max(256, os.cpu_count() or 1)
# Seeds a training's weights and order, and self-text.
MAX_TRAINING_SEED = 2**32 - 1


class DType(StrEnum):
    """Precisions of the weights."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Check = Callable[[typer.CallbackParam, Any], Any]


def between(least: float, most: float = math.inf) -> Check:
    """Make a check of a number's bounds; infinities and what is no number are outside of all."""
    bounds = f"at least {least}" if most == math.inf else f"{least} to {most}"
    return _check(lambda value: least <= value <= most, bounds)


def above(least: float) -> Check:
    """Make a check that a number is greater than another, and finite."""
    return _check(lambda value: value > least, f"above {least}")


def _check(fits: Callable[[float], bool], bounds: str) -> Check:
    def check(param: typer.CallbackParam, value: Any) -> Any:
        if value is not None and not (fits(value) and value < math.inf):
            raise ValueError(f"{param.name}: expected {bounds}, got {value}")
        return value

    return check


def home(value: Any) -> Any:
    """Write out a leading `~`, which shells leave alone behind a `=`."""
    if isinstance(value, list):
        return [home(one) for one in value]
    # Path's own would change other text too.
    return None if value is None else type(value)(os.path.expanduser(value))  # noqa: PTH111


ModelOption = Annotated[
    str,
    typer.Option(help=f"{' or '.join(EMBEDDED)} (embedded), a hub id, or a folder.", callback=home),
]
RevisionOption = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model from the hub.")
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that the model brings along; only if you have read it.",
    ),
]
DrafterOption = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(SHOWN)}, a folder, or several joined by +.",
        callback=home,
    ),
]
DTypeOption = Annotated[DType, typer.Option(help="Precision of the weights.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, mps, cuda, cuda:1, …")]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        help="CPU threads; torch's choice if not given.", callback=between(1, MAX_THREADS)
    ),
]
ExactOption = Annotated[
    bool, typer.Option("--exact", help="Bit-exact in bfloat16, where this machine can.")
]
NodesOption = Annotated[
    int | None,
    typer.Option(
        help=f"Most nodes verified per round, 1 to {MAX_NODES}; what pays on this machine if not given.",
        callback=between(1, MAX_NODES),
    ),
]
CostsOption = Annotated[
    Path | None,
    typer.Option(
        help="A cost table from `specdec tune --out`, in place of this machine's.", callback=home
    ),
]
NewTokensOption = Annotated[int, typer.Option(help="Most new tokens.", callback=between(1))]
TemperatureOption = Annotated[
    float,
    typer.Option(help="Draw tokens at this temperature; 0 takes the best.", callback=between(0)),
]
TopPOption = Annotated[float, typer.Option(help="Draw from the likeliest tokens of this mass.")]
SeedOption = Annotated[
    int | None,
    typer.Option(help="The same seed gives the same text.", callback=between(0, MAX_SEED)),
]


def check_sampling(temperature: float, top_p: float, seed: int | None) -> None:
    """Raise ValueError for settings that do not go together."""
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected above 0 to 1, got {top_p}")
    if temperature == 0:
        for name, value, unset in (("seed", seed, None), ("top_p", top_p, 1.0)):
            if value != unset:
                raise ValueError(f"{name}: expected none at temperature 0, got {value}")
