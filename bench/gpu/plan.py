"""The parts of a GPU run, what tells most first, and how much of the time each may have."""

from __future__ import annotations

import math
from typing import NamedTuple

from bench import ROOT

OPS = sorted(
    file.stem
    for file in (ROOT / "kernels/specdec_kernels/testing/cases").glob("*.py")
    if file.stem != "__init__"
)


class Part(NamedTuple):
    """A part of a run."""

    name: str
    until: float
    """The share of the run's time by which it has ended; what a part leaves, the next ones have."""
    longest: float
    """Seconds of one case; one that takes longer is stopped, and the others go on."""
    groups: list[tuple[str, str]]
    """Modules and what they do of this part, each in a process of its own, side by side."""
    beside: tuple[tuple[str, str], ...] = ()
    """The same, of what later parts need and other processors have time for."""
    package: str = "bench.gpu.jobs"
    """Where the modules are."""


def correct(module: str) -> list[tuple[str, str]]:
    """Split the ops among processes; attention, which has most cases, among several."""
    others = [(module, op) for op in OPS if op != "tree_attention"]
    return [(module, f"tree_attention {at}/4") for at in range(4)] + others


def parts_of(first: bool, dry: bool, model: bool) -> list[Part]:
    """List the parts, what tells most first."""
    if first:
        return [Part("first", 0.95, 60, [("correct", "all")] if dry else correct("correct"))]
    together = [("correct", "all")] if dry else correct("correct")
    # A folder with the model, and compiled peers.
    beside = [("texts", "unpack")] if model else []
    beside += [] if dry else [("times", f"warm {at}/4") for at in range(4)]
    tests = [("tests", name) for name in (["dry"] if dry else ["memcheck", "whole", *OPS])]
    return [
        Part("correct", 0.165, 45, together, tuple(beside)),
        Part("rounds", 0.40, 60, [("rounds", "all")]),
        Part("times", 0.66, 40, [("times", "all")]),
        Part("texts", 0.84, 60, [("texts", "all")]),
        Part("tests", 0.93, math.inf, tests),  # they look at the clock themselves
        Part("sweep", 0.98, math.inf, [("sweep", "all")]),
    ]
