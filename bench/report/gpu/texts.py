"""Tables of whole texts: the speed of each method and of each text."""

from __future__ import annotations

from typing import Any

from bench.report.gpu.figures import rows_of
from bench.report.gpu.tables import NOT_MEASURED, shares
from bench.report.pages import number, table

Row = dict[str, Any]


def texts(content: Row) -> str:
    """Return per method its speed, whether its texts are correct, and the device time of a round."""
    found = [row for row in rows_of(content, "texts") if row.get("kind") == "text"]
    profiles = {r["method"]: r for r in rows_of(content, "texts") if r.get("kind") == "profile"}
    methods = list(dict.fromkeys(row["method"] for row in found))
    rows = []
    for method in methods:
        own = [row for row in found if row["method"] == method]
        seen = profiles.get(method, {})
        rounds = sum(row.get("rounds") or 0 for row in own)
        total = sum((row.get("rounds") or 0) * (row.get("tokens_per_round") or 0) for row in own)
        rows.append([
            method,
            f"{speed(own):.1f}",
            number(compared(found, method, "transformers")),
            number(compared(found, method, "plain")),
            number(total / rounds if rounds else None),
            f"{sum(row['identical'] for row in own)}/{len(own)}",
            str(sum(row["ties"] for row in own)),
            str(sum(row["errors"] for row in own)),
            shares(seen.get("device_stages", {})),
            f"{seen['launches_per_round']:.0f}" if seen else "-",
        ])  # fmt: skip
    header = [
        "method",
        "tokens/s",
        "speed-up over transformers",
        "speed-up over plain",
        "tokens/round",
        "identical texts",
    ]
    header += ["ties", "errors", "device time of a round", "launches"]
    return table(header, rows) if rows else ""


def each_text(content: Row) -> str:
    """Return the speed of each text."""
    found = [row for row in rows_of(content, "texts") if row.get("kind") == "text"]
    rows = [
        [
            row["question"],
            row["method"],
            str(row["new_tokens"]),
            f"{speed([row]):.1f}",
            number(row.get("tokens_per_round")),
            "yes" if row["identical"] else f"{row['ties']} ties, {row['errors']} errors",
        ]
        for row in sorted(found, key=lambda row: row["question"])
    ]
    header = ["question", "method", "tokens", "tokens/s", "tokens/round", "identical"]
    return table(header, rows) if rows else NOT_MEASURED


def speed(rows: list[Row]) -> float:
    """Return tokens per second, prefill included."""
    spent = [r["seconds"] if "seconds" in r else r["prefill_seconds"] + r["decode_seconds"] for r in rows]  # fmt: skip
    return sum(row["new_tokens"] for row in rows) / sum(spent)


def compared(rows: list[Row], method: str, base: str) -> float | None:
    """Compare two methods on the questions both answered."""
    by = [{r["question"]: r for r in rows if r["method"] == m} for m in (method, base)]
    both = by[0].keys() & by[1].keys()
    ours, theirs = ([of[question] for question in both] for of in by)
    return speed(ours) / speed(theirs) if both else None
