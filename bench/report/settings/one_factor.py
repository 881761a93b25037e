"""The table of bench/decoding/one_factor.py."""

from __future__ import annotations

from typing import Any

from bench.report.pages import machine_line, number, table

AIM = 0.97


def factors_table(result: dict[str, Any]) -> str:
    """Compare drafted with plain decoding by wall clock, factor by factor."""
    header = ["changed factor", "speed-up over plain", "95 % interval", "tokens/round", "nodes/round", "rounds without a draft", "texts that differ"]  # fmt: skip
    rows = []
    for name, row in result["rows"].items():
        low, high = row["interval"]
        rows.append(
            [
                name,
                number(row["ratio"]),
                f"{low:.2f} to {high:.2f}",
                number(row["tokens_per_round"]),
                number(row["nodes_per_round"]),
                f"{row['rested']:.0%}",
                f"{row['different_texts']} of {row['batches']}",
            ]
        )
    missed = [
        row[0] for row, r in zip(rows, result["rows"].values(), strict=True) if r["ratio"] < AIM
    ]
    said = f"Below {AIM}: {', '.join(missed) or 'none'}."
    first = next(iter(result["rows"].values()))["machine"]
    return (
        f"{table(header, rows)}\n\n{said} {result['new_tokens']} new tokens; {machine_line(first)}"
    )
