"""Tables of docs/results/training_free.md: methods that need no training, on the same questions."""

from __future__ import annotations

from typing import Any

from bench.report.comparison import Result, runs_of
from bench.report.pages import machine_line, number, table
from specdec.evaluate.method_names import PLAIN, TRANSFORMERS_LOOKUP
from specdec.evaluate.runs import decode_speedup


def free_table(results: dict[str, Result]) -> str:
    """Return tokens, nodes, times and speed-ups of each method."""
    header = ["dtype, method", "tokens/round", "nodes/round", "draft, ms", "round, ms", "speed-up over plain", "speed-up over transformers' lookup", "identical texts", "ties", "errors"]  # fmt: skip
    rows = []
    for dtype, result in results.items():
        plain, library = (runs_of(result, method) for method in (PLAIN, TRANSFORMERS_LOOKUP))
        for method, row in result["summary"].items():
            runs = runs_of(result, method)
            rounds = sum(run.rounds or 0 for run in runs)
            spent = (
                sum(
                    run.seconds.get("draft", 0.0) + run.seconds.get("observe", 0.0) for run in runs
                ),
                sum(run.decode_seconds for run in runs),
            )
            each = [number(1e3 * s / rounds) if rounds else "-" for s in spent]
            rows.append(
                [f"{dtype}, {method}", number(row["tokens_per_round"]), number(row["nodes_per_round"])]
                + each
                + [number(decode_speedup(runs, base)) for base in (plain, library)]
                + [f"{row['identical']}/{row['answers']}", str(row["ties"]), str(row["errors"])]
            )  # fmt: skip
    machine = machine_line(next(iter(results.values()))["machine"])
    return f"{table(header, rows)}\n\n{machine}"


def free_categories(dtype: str, result: Result) -> str:
    """Return each method's speed-up over plain decoding by category."""
    summary = result["summary"]
    methods = [method for method in summary if method != PLAIN]
    rows = []
    for category in summary[PLAIN]["categories"]:
        base = [run for run in runs_of(result, PLAIN) if run.category == category]
        row = [category]
        for method in methods:
            runs = [run for run in runs_of(result, method) if run.category == category]
            row.append(number(decode_speedup(runs, base)))
        rows.append(row)
    return table([f"{dtype}, speed-up over plain", *methods], rows)


def equal_nodes_table(result: dict[str, Any]) -> str:
    """Return tokens per round with trees as large as the limit."""
    methods = result["methods"]
    nodes = list(next(iter(methods.values())))
    base = methods["lookup"]
    rows = []
    for method, found in methods.items():
        cells = []
        for count in nodes:
            here, there = found[count], base[count]
            ratio = here["tokens_per_round"] / there["tokens_per_round"]
            nodes_there = f"{here['nodes_per_round']:.1f}"
            if side := here["side_nodes"]:
                nodes_there += f" + {side} side nodes"
            cells.append(f"{here['tokens_per_round']:.2f} ({ratio:.2f}x, {nodes_there})")
        rows.append([method, *cells])
    header = ["tokens/round", *(f"at most {count} nodes" for count in nodes)]
    return table(header, rows)
