"""Tables of a GPU run: short ones for the terminal, all of them for the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.report.gpu.figures import rows_of
from bench.report.gpu.tables import NOT_MEASURED, checks, correct, rounds, sweeps, targets, times
from bench.report.gpu.texts import each_text, texts

RECORD = "gpu.json"

Row = dict[str, Any]


def gpu_page(folder: Path) -> str:
    """Return all tables, or that nothing was measured; a dry run measures nothing."""
    file = folder / RECORD
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if not content.get("measured"):
        return NOT_MEASURED
    parts = {"machine": machine(content), "targets": targets(content)}
    parts |= {part: part_table(part, content) for part in TABLES if part != "first"}
    parts["each text"] = each_text(content)
    return "\n\n".join(f"**{name}**\n\n{text}" for name, text in parts.items())


def part_table(part: str, content: Row) -> str:
    """Return a part's table, its failures and how many cases did not run."""
    rows = rows_of(content, part)
    planned = content.get("planned", {}).get(part, [])
    if not rows and not planned:
        return NOT_MEASURED
    if skipped := [row["skipped"] for row in rows if row["case"] == "-"]:
        return f"{NOT_MEASURED} {skipped[0]}."
    begun = {row["case"] for row in rows}
    left = [case for case in planned if case not in begun]
    told = [TABLES[part](content), failures(row for row in content["rows"] if row["part"] == part)]
    told.append(f"{len(left)} of {len(planned)} cases had no time." if left else "")
    return "\n\n".join(filter(None, told))


def summary(content: Row) -> tuple[str, bool]:
    """Return the main tables, and whether every result is correct."""
    wrong = [row for row in content["rows"] if is_wrong(row)]
    short = ("first", "correct", "rounds", "texts")
    told = [part_table(part, content) for part in short if rows_of(content, part)]
    told += [targets(content)] if rows_of(content, "times") else []
    told.append(machine(content))
    told.append(f"{len(wrong)} results are wrong or missing." if wrong else "No failures.")
    return "\n\n".join(told), not wrong


def is_wrong(row: Row) -> bool:
    """Return whether a row is a failure; transformers' texts are no exact reference in half precision and are not judged."""
    if "error" in row or row.get("ok") is False:
        return True
    if row.get("kind") == "text":
        return row["errors"] > 0 and not row["method"].startswith("transformers")
    return (row.get("kind") == "texts" and not row["identical"]) or row.get("same") is False


def machine(content: Row) -> str:
    facts = content["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    card = ", ".join(f"{name} {value}" for name, value in facts["card"].items())
    kind = "measured" if content["measured"] else "dry run, nothing is measured"
    return "; ".join(filter(None, [facts["device"], card, versions, content["date"], kind])) + "."


def failures(rows: Iterable[Row]) -> str:
    """Return a line per failure."""
    lines = [f"- {row['case']}: {row['error']}" for row in rows if "error" in row]
    return "\n".join(lines)


TABLES: dict[str, Callable[[Row], str]] = {
    "first": lambda content: correct(content, "first"),
    "correct": correct,
    "rounds": rounds,
    "times": times,
    "texts": texts,
    "tests": checks,
    "sweep": sweeps,
}
