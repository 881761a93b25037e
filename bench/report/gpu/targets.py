"""What an H100 should show, and whether a GPU run has shown it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
    """Whether the figure is to be at least the bound; otherwise at most."""
    unit: str = ""

    def met(self, figure: float) -> bool:
        return figure >= self.bound if self.least else figure <= self.bound


def microseconds(row: Row) -> float:
    return row["times"]["kernel"]["median_microseconds"]


def floor(row: Row) -> float:
    """Return what memory and arithmetic ask for; the 8 µs of a launch are not in it."""
    return max(row["floors_microseconds"][name] for name in ("memory", "compute"))


def over_floor(row: Row) -> float:
    return microseconds(row) - floor(row)


def over_weights(row: Row) -> float:
    """Compare with the time that the weights' share of the bytes asks for."""
    weights = row["floors_microseconds"]["memory"] * row["sizes"]["weight_bytes"] / row["bytes"]
    return microseconds(row) / weights


def share_of_copy(row: Row) -> float:
    return 100 * row["share_of_copy"]


def over(*peers: str) -> Callable[[Row], float | None]:
    """Take the speed-up over the fastest of these."""
    return lambda row: min((row["speedups"][p] for p in peers if p in row["speedups"]), default=None)  # fmt: skip


def few_rows(row: Row) -> bool:
    return row["sizes"]["rows"] <= 64


def verifies(row: Row) -> bool:
    """Tell whether it is tree verification of the sizes that the targets name."""
    s = row["sizes"]
    return 16 <= s["nodes"] <= 64 and 2000 <= s["prefix"] <= 32768 and 1 <= s["batch"] <= 32


def has_large_head(row: Row) -> bool:
    return row["sizes"].get("head_bytes", 0) > LARGE_HEAD


def is_small(row: Row) -> bool:
    return row["sizes"]["batch"] <= 8


ATTENTION, HEADS, DRAFT = ("tree_attention",), ("lm_head", "beam_step"), ("draft_step",)
TARGETS = [
    Target(
        "floor ≥ 100 µs, N·H/G ≤ 64: of copy", ATTENTION,
        lambda row: floor(row) >= 100 and few_rows(row), share_of_copy, 85, True, " %",
    ),
    *(
        Target(
            f"floor < 100 µs, N·H/G {sign} 64: over the floor", ATTENTION,
            lambda row, few=few: floor(row) < 100 and few_rows(row) == few, over_floor, 8, False, " µs",
        )
        for sign, few in (("≤", True), (">", False))
    ),
    Target("trees of 16 to 64 nodes: x FlexAttention", ATTENTION, verifies, over("flex"), 1.5, True),
    Target("trees of 16 to 64 nodes: x masked SDPA", ATTENTION, verifies, over(*MASKED_SDPA), 1.5, True),
    Target("N = 1: x SDPA", ATTENTION, lambda row: row["sizes"]["nodes"] == 1, over("sdpa"), 1, True),
    Target("head > 256 MB: of copy", HEADS, has_large_head, share_of_copy, 90, True, " %"),
    Target("head > 256 MB: time over the weights' own", DRAFT, has_large_head, over_weights, 1.25, False),
    Target("head > 256 MB: x eager", DRAFT, has_large_head, over("eager"), 2, True),
    *(
        Target("B ≤ 8: time", (op,), is_small, microseconds, 10, False, " µs")
        for op in ("commit_kv", "pack_tree", "accept_tree")
    ),
]  # fmt: skip


class Outcome(NamedTuple):
    """What a run says of a target."""

    measured: int
    cases: int
    """That the target is for and that ran."""
    worst: tuple[float, str] | None
    """Figure and case."""
    result: str


def judge(target: Target, rows: list[Row]) -> Outcome:
    """Judge the cases that were timed and are known to be right; one that is wrong spoils the target, and no other.

    Args:
        target: what should be shown.
        rows: from `timed_rows`.
    """
    cases = [
        row
        for row in rows
        if row["op"] in target.ops and "floors_microseconds" in row and target.applies(row)
    ]
    if wrong := [row["case"] for row in cases if row["gate"] is False]:
        return Outcome(0, len(cases), None, f"not right: {', '.join(wrong[:3])}")
    figures = [
        (figure, row["case"])
        for row in cases
        if row["gate"] and (figure := target.figure(row)) is not None
    ]
    if not figures:
        unknown = any(row["gate"] is None for row in cases)
        return Outcome(0, len(cases), None, "checks not done" if unknown else "not measured")
    worst = min(figures) if target.least else max(figures)
    return Outcome(len(figures), len(cases), worst, "met" if target.met(worst[0]) else "missed")
