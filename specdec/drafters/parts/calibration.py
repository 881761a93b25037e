"""Calibrations: how well a method's scores predict acceptance, measured by `specdec calibrate` and constant while decoding.

The methods' figures are in `calibrations.json`. A checkpoint may have its own file, `calibration.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from ...host.json_files import read_json

CALIBRATION = "calibration.json"
FILE = Path(__file__).parents[1] / "calibrations.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A method's measured speed and accuracy."""

    rate: float
    """Speed-up: tokens in the time of one plain step, at least 1."""
    share: float
    """Measured acceptance relative to the probability that the scores claim, above 0."""
    step_gain: float = 1.0
    """Tokens that one more draft step adds, relative to the probability of the draft so far; above 0."""
    tables: Mapping[str, Any] = field(default_factory=dict)
    """Tables from which a method computes its scores, by name."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        if not self.rate >= 1:
            raise ValueError(f"rate: expected at least 1, got {self.rate}")
        for name in ("share", "step_gain"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{name}: expected above 0, got {value}")


@cache
def calibrations() -> dict[str, Calibration]:
    """Return the shipped calibrations, by method."""
    return {method: Calibration(**figures) for method, figures in read_json(FILE).items()}


def calibration_of(method: str) -> Calibration:
    """Return a method's shipped calibration."""
    return calibrations()[method]


def calibration_in(folder: Path, method: str) -> Calibration | None:
    """Return a checkpoint's calibration, else its method's, else None.

    Raises:
        ValueError: if the checkpoint's file is not a calibration.
    """
    path = folder / CALIBRATION
    if not path.exists():
        return calibrations().get(method)
    known = {entry.name for entry in fields(Calibration)}
    try:
        return Calibration(**{name: v for name, v in read_json(path).items() if name in known})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a calibration, got {error}") from error


def together(calibrations: Sequence[Calibration | None]) -> Calibration | None:
    """Return a union's calibration: the sum of what each part adds to plain decoding; None if a part has none."""
    known = [each for each in calibrations if each is not None]
    if len(known) < len(calibrations):
        return None
    return Calibration(rate=1 + sum(each.rate - 1 for each in known), share=1.0)
