"""Pages with tables between marks, and how figures look in them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

from bench import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"


def fill(page: Path, tables: dict[str, str]) -> None:
    """Put each table between the two marks of its name."""
    text = page.read_text(encoding="utf-8")
    for name, content in tables.items():
        mark = f"<!-- {name} -->"
        parts = text.split(mark)
        if len(parts) != 3:
            raise ValueError(f"{page.name}: expected the mark {mark} twice, got {len(parts) - 1}")
        text = f"{parts[0]}{mark}\n\n{wrapped(classed(content))}\n\n{mark}{parts[2]}"
    page.write_text(text, encoding="utf-8")


def wrapped(text: str) -> str:
    """Wrap sentences at 100 characters; tables, headings and pictures stay on one line."""
    lines = text.split("\n")
    keep = ("|", "#", "!")
    return "\n".join(line if line.startswith(keep) else wrap(line) for line in lines)


def wrap(line: str) -> str:
    return textwrap.fill(line, 100, break_long_words=False, break_on_hyphens=False)


def classed(text: str) -> str:
    """Mark figures without a recorded CPU class: CPUs of one name have several."""
    return re.sub(r"\bcpu \(([^(),]+)\)", r"cpu (\1, class not recorded)", text)


# Numbers, perhaps several or with a unit.
FIGURE = re.compile(r"-?|[-+≥≤]?\d[\d.,/ ]*(%|µs|ms|x|of \d+|\+ \d+|\(\w+\))?")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Write a table; columns of figures, but not the first, are aligned to the right."""
    columns = list(zip(*rows, strict=True))[1:] if rows else [()] * (len(header) - 1)
    right = [all(len(cell) < 24 and FIGURE.fullmatch(cell) for cell in cells) for cells in columns]
    lines = [header, ["---", *("---:" if figures else "---" for figures in right)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def machine_line(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return f"{machine['device']}, {threads}; {versions}."
