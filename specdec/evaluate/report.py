"""Result tables for the terminal."""

from __future__ import annotations

from rich.table import Table

from ..metrics import CTAR_WIDTHS, Metrics
from .benchmark import Benchmark


def metrics_table(metrics: Metrics, title: str) -> Table:
    """Show the speed, acceptance, nodes and time per stage of a decode."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_row("new tokens", f"{metrics.new_tokens} in {metrics.rounds} rounds")
    table.add_row("tokens per second", f"{metrics.tokens_per_second:.1f}")
    table.add_row("tokens per round", f"{metrics.tokens_per_round:.2f}")
    ctar = "  ".join(f"{metrics.ctar(width):.2f}" for width in CTAR_WIDTHS)
    table.add_row(f"CTAR({CTAR_WIDTHS[0]}..{CTAR_WIDTHS[-1]})", ctar)
    table.add_row("nodes per round", f"{metrics.nodes_per_round:.1f}")
    table.add_row("removed by packing", f"{metrics.share_removed:.0%} of proposals")
    total = sum(metrics.seconds.values()) or 1.0
    stages = "  ".join(f"{stage} {s / total:.1%}" for stage, s in metrics.seconds.items())
    table.add_row("time per stage", stages)
    return table


def benchmark_tables(benchmark: Benchmark) -> list[Table]:
    """Show speed and text check per method, then the speed-up per category."""
    machine, summary = benchmark.machine, benchmark.summary
    batch = machine["batch"]
    speed = _table(
        f"{machine['device']}, {machine['threads']} threads, {machine['dtype']}"
        f"{', exact' if machine['exact'] else ''}"
        f"{f', batch {batch} (transformers one by one)' if batch else ''}",
        [
            "method",
            "tokens\n/s",
            "x trans-\nformers",
            "x\nplain",
            "tokens\n/round",
            "nodes\n/round",
        ],
    )
    efficient = _table(
        "decoding without prefill; the bound follows from tokens per round and the times of a round",
        ["method", "x plain", "bound", "reached"],
    )
    checked = _table(
        f"text compared with {machine['reference']}{', one text at a time' if batch else ''}",
        ["method", "identical", "ties", "errors", "largest margin"],
    )
    for method, row in summary.items():
        speed.add_row(
            method,
            f"{row['tokens_per_second']:.1f}",
            _number(row["speedup_vs_transformers"]),
            _number(row["speedup_vs_plain"]),
            _number(row["tokens_per_round"]),
            _number(row["nodes_per_round"]),
        )
        if efficiency := row["efficiency"]:
            efficient.add_row(
                method,
                _number(row["decode_speedup_vs_plain"]),
                _number(efficiency["bound"]),
                f"{efficiency['reached']:.0%}",
            )
        checked.add_row(
            method,
            f"{row['identical']}/{row['answers']}",
            str(row["ties"]),
            str(row["errors"]),
            f"{row['largest_margin']:.0e}" if row["largest_margin"] else "-",
        )
    if batch:
        return [speed, checked, efficient]
    base = "transformers" if summary["plain"]["speedup_vs_transformers"] else "plain"
    compared = {method: row for method, row in summary.items() if method != base}
    names = [method.replace("-", "-\n") for method in compared]
    categories = _table(f"speed-up over {base} by category", ["category", *names])
    for category in summary["plain"]["categories"]:
        cells = [m["categories"][category][f"speedup_vs_{base}"] for m in compared.values()]
        categories.add_row(category, *map(_number, cells))
    return [speed, checked, efficient, categories]


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right", no_wrap=True)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
