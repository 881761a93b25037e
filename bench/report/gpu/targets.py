"""Targets for an H100, and whether a GPU run meets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from bench.report.pages import table

Row = dict[str, Any]

LARGE_HEAD = 256e6
# SDPA with a dense mask: at its best, as models call it, and as Inductor makes it.
MASKED_SDPA = ("eager", "repeated", "compiled")


class Target(NamedTuple):
    """A bound on a figure of some cases."""

    name: str
    ops: tuple[str, ...]
    applies: Callable[[Row], bool]
    figure: Callable[[Row], float | None]
    """None where it was not measured."""
    bound: float
    least: bool
    """Whether the bound is a minimum; otherwise a maximum."""
    unit: str = ""

    def met(self, figure: float) -> bool:
        return figure >= self.bound if self.least else figure <= self.bound


def microseconds(row: Row) -> float:
    return row["times"]["kernel"]["median_microseconds"]


def floor(row: Row) -> float:
    """Return the floor of memory and arithmetic, without the 8 µs of a launch."""
    return max(row["floors_microseconds"][name] for name in ("memory", "compute"))


def over_floor(row: Row) -> float:
    return microseconds(row) - floor(row)


def over_weights(row: Row) -> float:
    """Return the time relative to that of reading the weights."""
    weights = row["floors_microseconds"]["memory"] * row["sizes"]["weight_bytes"] / row["bytes"]
    return microseconds(row) / weights


def share_of_copy(row: Row) -> float:
    return 100 * row["share_of_copy"]


def over(*peers: str) -> Callable[[Row], float | None]:
    """Return the speed-up over the fastest of these peers."""
    return lambda row: min((row["speedups"][p] for p in peers if p in row["speedups"]), default=None)  # fmt: skip


def few_rows(row: Row) -> bool:
    return row["sizes"]["rows"] <= 64


def verifies(row: Row) -> bool:
    """Return whether a case is tree verification of the sizes in the targets."""
    s = row["sizes"]
    return 16 <= s["nodes"] <= 64 and 2000 <= s["prefix"] <= 32768 and 1 <= s["batch"] <= 32


def has_large_head(row: Row) -> bool:
    return row["sizes"].get("head_bytes", 0) > LARGE_HEAD


def is_small(row: Row) -> bool:
    return row["sizes"]["batch"] <= 8


ATTENTION, HEADS, DRAFT = ("tree_attention",), ("lm_head", "beam_step"), ("draft_step",)
TARGETS = [
    Target(
        "floor ≥ 100 µs, N·H/G ≤ 64: share of copy bandwidth", ATTENTION,
        lambda row: floor(row) >= 100 and few_rows(row), share_of_copy, 85, True, " %",
    ),
    *(
        Target(
            f"floor < 100 µs, N·H/G {sign} 64: time above the floor", ATTENTION,
            lambda row, few=few: floor(row) < 100 and few_rows(row) == few, over_floor, 8, False, " µs",
        )
        for sign, few in (("≤", True), (">", False))
    ),
    Target("trees of 16 to 64 nodes: speed-up over FlexAttention", ATTENTION, verifies, over("flex"), 1.5, True),
    Target("trees of 16 to 64 nodes: speed-up over masked SDPA", ATTENTION, verifies, over(*MASKED_SDPA), 1.5, True),
    Target("N = 1: speed-up over SDPA", ATTENTION, lambda row: row["sizes"]["nodes"] == 1, over("sdpa"), 1, True),
    Target("head > 256 MB: share of copy bandwidth", HEADS, has_large_head, share_of_copy, 90, True, " %"),
    Target("head > 256 MB: time / reading the weights", DRAFT, has_large_head, over_weights, 1.25, False),
    Target("head > 256 MB: speed-up over eager", DRAFT, has_large_head, over("eager"), 2, True),
    *(
        Target("B ≤ 8: time", (op,), is_small, microseconds, 10, False, " µs")
        for op in ("commit_kv", "pack_tree", "accept_tree")
    ),
]  # fmt: skip


def bounds_table() -> str:
    """Return the bound of each target."""
    rows = [[name_of(target), bound_of(target)] for target in TARGETS]
    return table(["target", "bound"], rows)


def name_of(target: Target) -> str:
    return f"{', '.join(target.ops)}, {target.name}"


def bound_of(target: Target) -> str:
    return f"{'≥' if target.least else '≤'} {target.bound:g}{target.unit}"


class Outcome(NamedTuple):
    """A target's result."""

    measured: int
    cases: int
    """Cases that the target covers and that ran."""
    worst: tuple[float, str] | None
    """Figure and case."""
    result: str


def judge(target: Target, rows: list[Row]) -> Outcome:
    """Judge the timed cases known to be correct; a wrong case fails its own targets only.

    Args:
        target: the target to judge.
        rows: from `timed_rows`.
    """
    cases = [
        row
        for row in rows
        if row["op"] in target.ops and "floors_microseconds" in row and target.applies(row)
    ]
    if wrong := [row["case"] for row in cases if row["gate"] is False]:
        return Outcome(0, len(cases), None, f"wrong: {', '.join(wrong[:3])}")
    figures = [
        (figure, row["case"])
        for row in cases
        if row["gate"] and (figure := target.figure(row)) is not None
    ]
    if not figures:
        unknown = any(row["gate"] is None for row in cases)
        return Outcome(0, len(cases), None, "not checked" if unknown else "not measured")
    worst = min(figures) if target.least else max(figures)
    return Outcome(len(figures), len(cases), worst, "met" if target.met(worst[0]) else "missed")
