"""JSON objects from files of any origin: one per file, or one per line.

Byte-order marks are left out. A line ends where a line feed is, and nowhere else: text may hold other separators.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .reasons import reason

SHOWN = 60


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: if the file cannot be read or is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a readable JSON file, got {reason(error)}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_json_lines(path: Path, name: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Give the number, the text and the object of every line of a file, gzipped if it is called so; none of empty lines.

    Args:
        path: of the file.
        name: what the caller knows it by.

    Raises:
        ValueError: if the file cannot be read; a line that holds no object gives an empty one.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line, _object(line)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{name}: expected a readable JSONL file, got {path} ({reason(error)})"
        ) from error


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def is_text(value: object) -> bool:
    """Tell whether a value is text that a tokenizer can read; half a pair of surrogates, which JSON allows, is none."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def texts_of(value: object) -> list[str] | None:
    """Return a list of texts that hold something; None for anything else, one text alone too."""
    if isinstance(value, list) and all(is_text(text) and text for text in value):
        return value
    return None


def shown(line: str) -> str:
    """Cut a line for a message."""
    line = line.rstrip("\n")
    return repr(line if len(line) <= SHOWN else line[: SHOWN - 3] + "...")
