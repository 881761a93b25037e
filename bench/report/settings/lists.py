"""The table of `specdec bench --batch`: lists of prompts in which the next begins as one ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.report.pages import machine_line, number, table


def lists_table(results: Sequence[dict[str, Any]]) -> str:
    """Tell each number of rows at once, drafted against plain."""
    header = ["rows at once, method", "tokens/s", "x plain", "decode alone, x plain", "tokens/round", "nodes/round", "same text as alone"]  # fmt: skip
    rows = [
        [
            f"{result['machine']['batch']}, {method}",
            f"{row['tokens_per_second']:.1f}",
            number(row["speedup_vs_plain"]),
            number(row["decode_speedup_vs_plain"]),
            number(row["tokens_per_round"]),
            number(row["nodes_per_round"]),
            f"{row['identical']} of {row['answers']}",
        ]
        for result in results
        for method, row in result["summary"].items()
    ]
    machine = results[0]["machine"]
    return f"{table(header, rows)}\n\n{machine['dtype']}; {machine_line(machine)}"
