"""Tables and the picture of a `specdec bench` result with any methods."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt

from bench.report.pages import number, table
from specdec.evaluate.method_names import PLAIN, TRANSFORMERS
from specdec.evaluate.runs import Run, decode_speedup, efficiency

# In the order of tables and bars.
COLORS = {
    "transformers": "#8c959f",
    "transformers-lookup": "#bf8700",
    "plain": "#54aeff",
    "lookup": "#1a7f37",
    "redrafter": "#cf222e",
    "kangaroo": "#8250df",
    "mixed": "#24292f",
}
LABELS = {
    "transformers": "transformers generate",
    "transformers-lookup": "transformers prompt lookup",
    "plain": "specdec, plain decoding",
    "lookup": "specdec, lookup trees",
    "redrafter": "specdec, ReDrafter",
    "kangaroo": "specdec, Kangaroo",
    "mixed": "specdec, ReDrafter and lookup",
}
TEXTS = {"float32": "same text for all methods", "bfloat16": "each method's own text"}
STAGES = ("draft", "pack", "verify", "pick", "accept", "commit", "observe", "emit")

Result = dict[str, Any]


def methods_of(*results: Result) -> list[str]:
    """List the methods in the results: known ones first, in table order."""
    there = dict.fromkeys(method for result in results for method in result["summary"])
    return [m for m in COLORS if m in there] + [m for m in there if m not in COLORS]


def runs_of(result: Result, method: str) -> list[Run]:
    return [Run(**run) for run in result["runs"] if run["method"] == method]


def draw_speedups(results: dict[str, Result], path: Path) -> None:
    """Bars per category: tokens per second over the library's, one panel per dtype."""
    methods = methods_of(*results.values())
    categories = [*results["float32"]["summary"][PLAIN]["categories"], "overall"]
    width = 0.84 / len(methods)
    figure, axes = plt.subplots(len(results), 1, figsize=(11, 3.5 * len(results)), sharex=True)
    for axis, (dtype, result) in zip(axes, results.items(), strict=True):
        for place, method in enumerate(methods):
            if method not in result["summary"]:
                continue
            summary = result["summary"][method]
            speedups = {**summary["categories"], "overall": summary}
            heights = [speedups[category]["speedup_vs_transformers"] for category in categories]
            at = [x + width * (place - (len(methods) - 1) / 2) for x in range(len(categories))]
            label = LABELS.get(method, method)
            axis.bar(at, heights, width, color=COLORS.get(method), label=label)
        axis.axhline(1, color="#57606a", linewidth=0.8)
        axis.set_title(f"{dtype}, {TEXTS[dtype]}: speed-up over transformers", loc="left")
        axis.set_ylabel("speed-up")
        axis.spines[["top", "right"]].set_visible(False)
    labels = [category.replace("_", " ") for category in categories]
    axes[-1].set_xticks(range(len(categories)), labels, rotation=30, ha="right")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="upper center")
    figure.tight_layout(rect=(0, 0, 1, 0.96 if len(methods) <= 4 else 0.93))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def methods_table(results: dict[str, Result]) -> str:
    header = ["dtype, method", "tokens/s", "speed-up over transformers", "speed-up over plain", "tokens/round", "CTAR(1), (2), (3)", "nodes/round", "identical texts", "ties", "errors"]  # fmt: skip
    rows = []
    for dtype, result in results.items():
        for method, row in result["summary"].items():
            ctar = ", ".join(f"{x:.2f}" for x in row["ctar"][:3]) if row["ctar"] else "-"
            rows.append(
                [
                    f"{dtype}, {method}",
                    f"{row['tokens_per_second']:.1f}",
                    number(row["speedup_vs_transformers"]),
                    number(row["speedup_vs_plain"]),
                    number(row["tokens_per_round"]),
                    ctar,
                    number(row["nodes_per_round"]),
                    f"{row['identical']}/{row['answers']}",
                    str(row["ties"]),
                    str(row["errors"]),
                ]
            )
    return table(header, rows)


def categories_table(dtype: str, result: Result) -> str:
    summary = result["summary"]
    methods = [method for method in methods_of(result) if method != TRANSFORMERS]
    rows = [
        [category]
        + [number(summary[m]["categories"][category]["speedup_vs_transformers"]) for m in methods]
        for category in summary[PLAIN]["categories"]
    ]
    rows.append(["**overall**"] + [number(summary[m]["speedup_vs_transformers"]) for m in methods])
    return table([dtype, *methods], rows)


def efficiency_table(results: dict[str, Result]) -> str:
    header = ["dtype, method", "tokens/round", "plain pass, ms", "tree pass, ms", "draft, ms", "bound", "speed-up over plain", "share of the bound", "speed-up over transformers"]  # fmt: skip
    rows = []
    for dtype, result in results.items():
        plain, library = (runs_of(result, method) for method in (PLAIN, TRANSFORMERS))
        for method in methods_of(result):
            runs = runs_of(result, method)
            found = None if method == PLAIN else efficiency(runs, plain)
            if found is None:
                continue
            seconds = (found.plain_verify_seconds, found.verify_seconds, found.draft_seconds)
            rows.append(
                [f"{dtype}, {method}", number(found.tokens_per_round)]
                + [number(1e3 * s) for s in seconds]
                + [number(found.bound), number(decode_speedup(runs, plain))]
                + [f"{found.reached:.1%}", number(decode_speedup(runs, library))]
            )
    return table(header, rows)


def medians_table(result: Result) -> str:
    """Return speed-ups of the median prompt, which one long repeat cannot raise."""
    methods = [method for method in methods_of(result) if method not in (PLAIN, TRANSFORMERS)]
    rows = []
    for method in methods:
        row = [method]
        for base in (PLAIN, TRANSFORMERS, "lookup"):
            pairs = zip(runs_of(result, method), runs_of(result, base), strict=True)
            speedups = [decode_speedup([ours], [theirs]) for ours, theirs in pairs]
            row.append(number(median(s for s in speedups if s is not None)))
        rows.append(row)
    return table(
        [
            "method, median prompt",
            "speed-up over plain",
            "speed-up over transformers",
            "speed-up over lookup",
        ],
        rows,
    )


def stages_table(results: dict[str, Result]) -> str:
    # Older files have the picks in `verify`.
    runs = [run for result in results.values() for run in result["runs"]]
    stages = [stage for stage in STAGES if any(stage in run["seconds"] for run in runs)]
    rows = []
    for dtype, result in results.items():
        for method in methods_of(result):
            runs = runs_of(result, method)
            rounds = sum(run.rounds or 0 for run in runs)
            if not rounds:  # transformers' methods do not report rounds
                continue
            seconds = {s: sum(run.seconds.get(s, 0.0) for run in runs) for s in stages}
            wall = sum(run.decode_seconds for run in runs)
            own = wall - seconds["verify"] - seconds["draft"]
            rows.append(
                [f"{dtype}, {method}", number(1e3 * wall / rounds)]
                + [number(1e3 * seconds[stage] / rounds) for stage in stages]
                + [f"{own / wall:.1%}"]
            )
    return table(["ms per round", "total", *stages, "outside draft and verify"], rows)
