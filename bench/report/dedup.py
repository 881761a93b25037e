"""Picture and table of bench/decoding/dedup.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from bench.report.pages import machine_line, table

COLORS = ("#54aeff", "#1a7f37", "#cf222e", "#8250df")
TITLES = {"without_root": "drafted tokens alone", "with_root": "root column included"}
# ReDrafter section 4.3.2, for beams of length 5 and 5 to 70 of them.
PUBLISHED, PUBLISHED_LENGTH, PUBLISHED_WIDTHS = (0.3, 0.6), 5, (5, 70)


def draw_dedup(result: dict[str, Any], path: Path) -> None:
    """Mean share over the beam width, a line per length; the band is from the 1st to the 99th percentile."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
    widths, lengths = _axes(result)
    for axis, (key, title) in zip(axes, TITLES.items(), strict=True):
        for length, color in zip(lengths, COLORS, strict=True):
            rows = [_row(result, width, length)[key] for width in widths]
            axis.plot(
                widths, [row["mean"] for row in rows],
                color=color, marker="o", markersize=3, label=f"length {length}",
            )  # fmt: skip
            if length == PUBLISHED_LENGTH:
                low, high = ([row[p] for row in rows] for p in ("p1", "p99"))
                axis.fill_between(widths, low, high, color=color, alpha=0.12, linewidth=0)
        for share in PUBLISHED:
            axis.hlines(share, *PUBLISHED_WIDTHS, color="#57606a", linestyle="--", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(widths, [str(width) for width in widths])
        axis.set_title(title, loc="left")
        axis.set_xlabel("beam width (dashed: published range for length 5)")
        axis.set_ylim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share removed by packing")
    axes[0].legend(frameon=False, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def dedup_table(result: dict[str, Any]) -> str:
    widths, lengths = _axes(result)
    header = ["beam width", *(f"length {length}" for length in lengths)]
    tables = [
        f"Share of nodes removed by packing, {title}: mean (1st to 99th percentile).\n\n"
        + table(header, [[str(w), *(_cell(_row(result, w, c)[key]) for c in lengths)] for w in widths])
        for key, title in TITLES.items()
    ]  # fmt: skip
    machine = machine_line(result["machine"])
    facts = f"{result['contexts']:,} contexts of {result['questions']} questions, {result['machine']['dtype']}; {machine}"
    return "\n\n".join([*tables, facts])


def _axes(result: dict[str, Any]) -> tuple[list[int], list[int]]:
    shares = result["shares"]
    return sorted({row["width"] for row in shares}), sorted({row["length"] for row in shares})


def _row(result: dict[str, Any], width: int, length: int) -> dict[str, Any]:
    return next(
        row for row in result["shares"] if row["width"] == width and row["length"] == length
    )


def _cell(share: dict[str, float]) -> str:
    return f"{share['mean']:.0%} ({share['p1']:.0%} to {share['p99']:.0%})"
