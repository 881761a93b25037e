"""Draw the picture and write the tables of README.md and docs/benchmarks.md from the data files in bench/results.

python bench/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
DOCS = Path(__file__).parents[1] / "docs"
DTYPES = ("float32", "bfloat16")
COLORS = {
    "transformers": "#8c959f",
    "transformers-lookup": "#bf8700",
    "plain": "#54aeff",
    "lookup": "#1a7f37",
}
TEXTS = {"float32": "one text for all methods", "bfloat16": "each method's own text"}
LABELS = {
    "transformers": "transformers generate",
    "transformers-lookup": "transformers prompt lookup",
    "plain": "our loop, no drafter",
    "lookup": "our loop, lookup trees",
}


def main() -> None:
    spec_bench = {dtype: load(f"spec_bench_cpu_{dtype}.json") for dtype in DTYPES}
    steps = {dtype: load(f"step_cpu_{dtype}.json") for dtype in DTYPES}
    exact = load("spec_bench_cpu_bfloat16_exact.json")
    draw(spec_bench)
    both = {**spec_bench, "bfloat16, exact": exact}
    fill(README, {"results": readme_table(both)})
    fill(
        DOCS / "benchmarks.md",
        {
            "machine": machine_line(spec_bench["float32"]["machine"]),
            "methods": methods_table(both),
            "categories": "\n\n".join(categories_table(d, spec_bench[d]) for d in DTYPES),
            "steps": steps_table(steps),
            "kinds": kinds_table(steps),
            "stages": stages_table(spec_bench),
        },
    )


def fill(page: Path, tables: dict[str, str]) -> None:
    """Put each table between the two marks of its name."""
    text = page.read_text()
    for name, table in tables.items():
        mark = f"<!-- {name} -->"
        before, _, after = text.split(mark)
        text = f"{before}{mark}\n\n{table}\n\n{mark}{after}"
    page.write_text(text)


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return loaded


def draw(spec_bench: dict[str, dict[str, Any]]) -> None:
    """Bars per category: tokens per second over the library's, one panel per dtype."""
    figure, axes = plt.subplots(2, 1, figsize=(11, 7), sharex=True)
    for axis, (dtype, result) in zip(axes, spec_bench.items(), strict=True):
        summary = result["summary"]
        categories = [*summary["lookup"]["categories"], "overall"]
        for place, method in enumerate(COLORS):
            heights = [
                (
                    summary[method]
                    if category == "overall"
                    else summary[method]["categories"][category]
                )["speedup_vs_transformers"]
                for category in categories
            ]
            at = [x + 0.2 * (place - 1.5) for x in range(len(categories))]
            axis.bar(at, heights, 0.2, color=COLORS[method], label=LABELS[method])
        axis.axhline(1, color="#57606a", linewidth=0.8)
        axis.set_title(f"{dtype}, {TEXTS[dtype]}: speed relative to transformers", loc="left")
        axis.set_ylabel("times as fast")
        axis.spines[["top", "right"]].set_visible(False)
    labels = [category.replace("_", " ") for category in categories]
    axes[-1].set_xticks(range(len(categories)), labels, rotation=30, ha="right")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="upper center")
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(DOCS / "speedups.png", dpi=110)


def machine_line(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['device']}, {machine['threads']} threads; {versions}."


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def readme_table(results: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            dtype,
            LABELS[method],
            f"{row['tokens_per_second']:.1f}",
            number(row["speedup_vs_transformers"]),
            number(row["tokens_per_round"]),
            f"{row['identical']} of {row['answers']}",
        ]
        for dtype, result in results.items()
        for method, row in sorted(result["summary"].items(), key=lambda m: list(COLORS).index(m[0]))
    ]
    machine = machine_line(results["float32"]["machine"])
    header = [
        "dtype",
        "method",
        "tokens/s",
        "x transformers",
        "tokens/round",
        "same text as reference",
    ]
    return f"{table(header, rows)}\n\n{machine}"


def methods_table(results: dict[str, dict[str, Any]]) -> str:
    header = ["dtype, method", "tokens/s", "x transformers", "x plain", "tokens/round", "CTAR(1), (2), (3)", "nodes/round", "identical", "ties", "errors"]  # fmt: skip
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


def categories_table(dtype: str, result: dict[str, Any]) -> str:
    summary = result["summary"]
    methods = [method for method in COLORS if method != "transformers"]
    rows = [
        [category]
        + [number(summary[m]["categories"][category]["speedup_vs_transformers"]) for m in methods]
        for category in summary["lookup"]["categories"]
    ]
    rows.append(["**overall**"] + [number(summary[m]["speedup_vs_transformers"]) for m in methods])
    return table([dtype, *methods], rows)


def steps_table(steps: dict[str, dict[str, Any]]) -> str:
    names = list(next(iter(steps.values()))["median_ms"])
    rows = []
    for name in names:
        row = [name]
        for dtype in DTYPES:
            median = steps[dtype]["median_ms"]
            row += [f"{median[name]:.1f}", f"{median[name] / median['transformers']:.2f}"]
        rows.append(row)
    header = ["step"] + [f"{dtype} {what}" for dtype in DTYPES for what in ("ms", "/ transformers")]
    return table(header, rows)


def kinds_table(steps: dict[str, dict[str, Any]]) -> str:
    rows = []
    for dtype in DTYPES:
        for step, kinds in steps[dtype]["milliseconds_by_kind"].items():
            rows.append([f"{dtype}, {step}"] + [f"{value:.1f}" for value in kinds.values()])
    kinds = list(steps["float32"]["milliseconds_by_kind"]["transformers"])
    return table(["step", *kinds], rows)


def stages_table(results: dict[str, dict[str, Any]]) -> str:
    stages = ["draft", "pack", "verify", "accept", "commit", "observe", "emit"]
    rows = []
    for dtype, result in results.items():
        for method in ("plain", "lookup"):
            seconds = result["summary"][method]["stage_seconds"]
            runs = [run for run in result["runs"] if run["method"] == method]
            wall = sum(run["decode_seconds"] for run in runs)
            rounds = sum(run["rounds"] for run in runs)
            own = wall - seconds["verify"] - seconds["draft"]
            rows.append(
                [f"{dtype}, {method}", f"{1e3 * wall / rounds:.2f}"]
                + [f"{1e3 * seconds[stage] / rounds:.2f}" for stage in stages]
                + [f"{own / wall:.1%}"]
            )
    return table(["ms per round", "all", *stages, "loop's own share"], rows)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
