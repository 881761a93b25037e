"""Reads JSON objects from files, one per file or one per line.

Byte-order marks are dropped. Only a line feed ends a line, as text may contain other separators.
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
        ValueError: if the file cannot be read or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a readable JSON file, got {reason(error)}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_json_lines(path: Path, name: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield number, text and object of every non-empty line; a line that is not an object yields an empty one.

    Args:
        path: the file; gzipped if its name ends in `.gz`.
        name: the caller's argument, for errors.

    Raises:
        ValueError: if the file cannot be read.
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
    """Return whether a value is text that a tokenizer can read; a lone surrogate, which JSON allows, is not."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def texts_of(value: object) -> list[str] | None:
    """Return the value if it is a list of non-empty texts; None for anything else, also for a single text."""
    if isinstance(value, list) and all(is_text(text) and text for text in value):
        return value
    return None


def shown(line: str) -> str:
    """Shorten a line for a message."""
    line = line.rstrip("\n")
    return repr(line if len(line) <= SHOWN else line[: SHOWN - 3] + "...")
