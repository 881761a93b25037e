"""Tables and pictures of `make bench`, and the difference between two of its runs.

python -m bench.report.ops first.json second.json --json bench/results/ops_cpu_spread.json
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.report.pages import machine_line, table

NOT_MEASURED = "**Not measured.**"
COLORS = {"eager": "#57606a", "compiled": "#0969da", "kernel": "#1a7f37"}
HEADER = ["case, implementation", "median, µs", "IQR, µs", "GB/s", "GFLOP/s", "speed-up over eager"]

Row = dict[str, Any]


def ops_page(results: Path, pictures: Path) -> str:
    """Return the tables of every device measured, with a picture of each op drawn into `pictures`.

    Args:
        results: where `ops_cpu.json`, `ops_cuda.json` and their spreads are, if they are.
        pictures: where pictures go.
    """
    parts: list[str] = []
    for device in ("cpu", "cuda"):
        content = read(results / f"ops_{device}.json")
        if not content.get("measured"):
            continue
        spread = read(results / f"ops_{device}_spread.json")
        parts += [machine_line(content["machine_info"]), spread_line(spread)]
        for op, rows in by_op(content).items():
            picture = pictures / f"bench_{op}_{device}.png"
            draw_op(rows, picture)
            title = f"### `{op}`, {device}" if device != "cpu" else f"### `{op}`"
            parts += [
                title,
                f"![Times](../pictures/{picture.name})",
                op_table(rows, spread),
            ]
    return "\n\n".join(parts) or NOT_MEASURED


def op_table(rows: list[Row], spread: dict[str, Any]) -> str:
    """Return an op's times; with speed-ups if its tests passed in the same run."""
    passed = all(row["extra_info"]["tests_passed"] for row in rows)
    eager = {case_of(row): row for row in rows if way_of(row) == "eager"}
    noise = spread.get("largest_by_op", {}).get(rows[0]["extra_info"]["op"])
    lines = []
    for row in rows:
        stats, facts = row["stats"], row["extra_info"]
        seconds = stats["median"]
        line = [f"{case_of(row)}, {way_of(row)}", digits(seconds * 1e6), digits(stats["iqr"] * 1e6)]
        line += [digits(facts["bytes"] / seconds / 1e9)]
        line += [digits(facts["flops"] / seconds / 1e9) if facts["flops"] else "-"]
        reference = eager.get(case_of(row)) if passed and way_of(row) != "eager" else None
        ratio = reference["stats"]["median"] / seconds if reference else None
        lines.append([*line, speed_up(ratio, noise)])
    told = table(HEADER, lines)
    if not passed:
        told += "\n\nNo speed-ups: some of the op's tests failed in this run."
    return told


def speed_up(ratio: float | None, noise: float | None) -> str:
    """Format a speed-up; mark it if two runs of the same code differ as much."""
    if ratio is None:
        return "-"
    within = noise is not None and max(ratio, 1 / ratio) <= noise
    return f"{ratio:.2f}{' (noise)' if within else ''}"


def draw_op(rows: list[Row], path: Path) -> None:
    """Draw a line per case with a point per implementation: the median, with a bar between the quartiles."""
    cases = list(dict.fromkeys(map(case_of, rows)))
    ways = [way for way in COLORS if any(way_of(row) == way for row in rows)]
    figure, axis = plt.subplots(figsize=(9, 1.3 + 0.26 * len(cases) * len(ways)))
    for number, way in enumerate(ways):
        own = [row for row in rows if way_of(row) == way]
        offset = 0.7 * ((number + 0.5) / len(ways) - 0.5)
        places = [cases.index(case_of(row)) + offset for row in own]
        stats = [row["stats"] for row in own]
        middles, lows, highs = ([s[q] * 1e6 for s in stats] for q in ("median", "q1", "q3"))
        axis.hlines(places, lows, highs, color=COLORS[way], linewidth=3, alpha=0.5)
        axis.scatter(middles, places, 22, color=COLORS[way], label=way, zorder=2)
        for place, middle, high in zip(places, middles, highs, strict=True):
            axis.annotate(
                digits(middle), (max(middle, high), place), (6, 0), textcoords="offset points",
                va="center", fontsize=8, color=COLORS[way],
            )  # fmt: skip
    axis.set_yticks(range(len(cases)), cases)
    axis.set_ylim(len(cases) - 0.5, -0.5)
    axis.set_xscale("log")
    left, right = axis.get_xlim()
    axis.set_xlim(left / 1.4, right * 1.6)  # room for the last number
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right < 100 * left else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: digits(value)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#d0d7de", linewidth=0.6)
    axis.set_axisbelow(True)
    for edge in range(1, len(cases)):
        axis.axhline(edge - 0.5, color="#d0d7de", linewidth=0.6)
    axis.set_xlabel("µs, logarithmic; point: median, bar: first to third quartile")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(frameon=False, ncols=len(ways), loc="lower right", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def of(row: dict[str, Any]) -> str:
    """Name a benchmark without its file, which may have moved."""
    return row["fullname"].rpartition("::")[2]


def spread_of(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Compare two runs of the same benchmarks: the larger median over the smaller one, for each.

    Raises:
        ValueError: if they are of different machines or versions, or have no benchmark in common.
    """
    if first["machine_info"] != second["machine_info"]:
        raise ValueError(
            f"second: expected a run on {first['machine_info']}, got {second['machine_info']}"
        )
    medians = [{of(row): row["stats"]["median"] for row in x["benchmarks"]} for x in (first, second)]  # fmt: skip
    pairs = {name: (medians[0][name], medians[1][name]) for name in medians[0].keys() & medians[1]}
    if not pairs:
        raise ValueError("second: expected benchmarks that the first run has too, got none")
    ratios = {name: max(pair) / min(pair) for name, pair in pairs.items()}
    ops = {
        op: [ratios[of(row)] for row in rows if of(row) in ratios]
        for op, rows in by_op(first).items()
    }
    largest = max(ratios, key=lambda name: ratios[name])
    return {
        "machine": first["machine_info"],
        "benchmarks": len(ratios),
        "median": median(ratios.values()),
        "largest": ratios[largest],
        "largest_of": largest.partition("[")[2].rstrip("]"),
        "largest_by_op": {op: max(found) for op, found in ops.items() if found},
    }


def spread_line(spread: dict[str, Any]) -> str:
    if not spread:
        return "The difference between two runs was not measured."
    return (
        f"Two runs of these {spread['benchmarks']} benchmarks differ by {spread['median'] - 1:.1%} in the median and "
        f"{spread['largest'] - 1:.1%} at most (`{spread['largest_of']}`). Speed-ups within an op's difference are marked as "
        "noise."
    )


def by_op(content: dict[str, Any]) -> dict[str, list[Row]]:
    rows = sorted(content["benchmarks"], key=lambda row: row["extra_info"]["op"])
    return {op: list(own) for op, own in groupby(rows, lambda row: row["extra_info"]["op"])}


def case_of(row: Row) -> str:
    return str(row["extra_info"]["case"])


def way_of(row: Row) -> str:
    return str(row["extra_info"]["way"])


def digits(value: float) -> str:
    """Format with at least three digits and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--json", type=Path, help="write the comparison to this file")
    options = parser.parse_args()
    spread = spread_of(read(options.first), read(options.second))
    print(spread_line(spread))
    if options.json:
        options.json.write_text(json.dumps(spread, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
