"""What is known of each method from text that it has drafted: measured once by `specdec calibrate`, frozen while decoding.

The methods' own figures lie in `calibrations.json`. A checkpoint may bring a file of its own, `calibration.json`.
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
    """How good a method is, and how far its scores can be believed."""

    rate: float
    """Tokens that it writes in the time of a plain step, at least 1."""
    share: float
    """Share of the probability it claims that comes true, above 0."""
    step_gain: float = 1.0
    """Tokens that one more step of the draft adds, as a share of the probability that the draft holds so far; above 0."""
    tables: Mapping[str, Any] = field(default_factory=dict)
    """What its scores are made of, by name: as each drafter says."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        if not self.rate >= 1:
            raise ValueError(f"rate: expected at least 1, got {self.rate}")
        for name in ("share", "step_gain"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{name}: expected above 0, got {value}")


@cache
def calibrations() -> dict[str, Calibration]:
    """Return the figures that are shipped, by method."""
    return {method: Calibration(**figures) for method, figures in read_json(FILE).items()}


def calibration_of(method: str) -> Calibration:
    """Return the figures that are shipped with a method."""
    return calibrations()[method]


def calibration_in(folder: Path, method: str) -> Calibration | None:
    """Return a checkpoint's own figures, or its method's where it brings none; None where there are none at all.

    Raises:
        ValueError: if its file is no calibration.
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
    """Return the figures of a union, None where those of a part are missing: what each adds to plain decoding, added up."""
    known = [each for each in calibrations if each is not None]
    if len(known) < len(calibrations):
        return None
    return Calibration(rate=1 + sum(each.rate - 1 for each in known), share=1.0)
