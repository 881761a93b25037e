"""Tables for people."""

from __future__ import annotations

from rich.table import Table

from ..metrics import CTAR_WIDTHS, Metrics
from .benchmark import Benchmark


def metrics_table(metrics: Metrics, title: str) -> Table:
    """Show what one decode did: speed, acceptance, nodes, time per stage."""
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
    """Show the summary per method and the speed-up per category."""
    machine = benchmark.machine
    title = (
        f"{machine['device']}, {machine['threads']} threads, {machine['dtype']}"
        f"{', exact' if machine['exact'] else ''}; reference: {machine['reference']}"
    )
    summary = Table(title=title)
    for column in (
        "method", "tokens/s", "x transformers", "x plain", "tokens/round", "nodes", "identical", "ties", "errors", "margin"
    ):  # fmt: skip
        summary.add_column(column, justify="left" if column == "method" else "right")
    for method, row in benchmark.summary.items():
        summary.add_row(
            method,
            f"{row['tokens_per_second']:.1f}",
            _number(row["speedup_vs_transformers"]),
            _number(row["speedup_vs_plain"]),
            _number(row["tokens_per_round"]),
            _number(row["nodes_per_round"]),
            f"{row['identical']}/{row['answers']}",
            str(row["ties"]),
            str(row["errors"]),
            f"{row['largest_margin']:.0e}" if row["largest_margin"] else "-",
        )
    base = (
        "transformers"
        if any(row["speedup_vs_transformers"] for row in benchmark.summary.values())
        else "plain"
    )
    categories = Table(title=f"speed-up over {base} by category")
    categories.add_column("category")
    for method in benchmark.summary:
        categories.add_column(method, justify="right")
    for category in next(iter(benchmark.summary.values()))["categories"]:
        cells = [
            _number(row["categories"][category][f"speedup_vs_{base}"])
            for row in benchmark.summary.values()
        ]
        categories.add_row(category, *cells)
    return [summary, categories]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
