"""Table of `specdec bench --batch`: lists of prompts with refilled rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.report.pages import machine_line, number, table


def lists_table(results: Sequence[dict[str, Any]]) -> str:
    """Compare each method with plain decoding, for each number of rows."""
    header = ["rows at once, method", "tokens/s", "speed-up over plain", "speed-up over plain, without prefill", "tokens/round", "nodes/round", "texts identical to single rows"]  # fmt: skip
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
