"""Reads the files that a store is built from: text, JSONL with a text field, and stores of `specdec data`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..host.json_files import is_text, read_json_lines, shown
from ..host.reasons import reason
from ..selftext.store import Store, is_store
from ..sources.tokenizing import ids_of_texts

LETTERS = 1 << 20
"""Characters of a batch of texts that is tokenized at once, and of a part of a text file."""


def vocabulary_size(tokenizer: Any) -> int:
    """Return the upper bound (exclusive) of a tokenizer's ids."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def texts_of_file(path: Path, tokenizer: Any, field: str) -> Iterator[list[int]]:
    """Yield the texts of a file as token ids without added special tokens.

    Args:
        path: a store of `specdec data`; JSONL, gzipped or not, by its name; else UTF-8 text, which is split at line ends
            into texts of a megabyte.
        tokenizer: tokenizes text. Ids in a store of `specdec data` are assumed to be its own.
        field: JSONL field with the text; a line may have `prompt_ids` and `answer_ids` instead.

    Raises:
        ValueError: if the file cannot be read, has another format or too many different ids.
    """
    if is_store(path):
        yield from _conversations(path)
    elif ".jsonl" in path.suffixes[-2:]:
        yield from _lines(path, tokenizer, field)
    else:
        for part in _parts(path):
            yield from ids_of_texts(tokenizer, [part], add_special_tokens=False)


def _conversations(path: Path) -> Iterator[list[int]]:
    for _, record in Store.read(path).records():
        yield record.ids


def _lines(path: Path, tokenizer: Any, field: str) -> Iterator[list[int]]:
    batch: list[str] = []
    letters = 0
    for number, line, fields in read_json_lines(path, "files"):
        if is_text(text := fields.get(field)):
            batch.append(str(text))
            letters += len(batch[-1])
            if letters >= LETTERS:
                yield from ids_of_texts(tokenizer, batch, add_special_tokens=False)
                batch, letters = [], 0
            continue
        both = fields.get("prompt_ids"), fields.get("answer_ids")
        ids = [i for part in both if isinstance(part, list) for i in part]
        if not ids or any(type(i) is not int for i in ids):
            raise ValueError(
                f"files: expected an object with a text {field!r}, or prompt_ids and answer_ids, in {path} line "
                f"{number}, got {shown(line)}"
            )
        yield from ids_of_texts(tokenizer, batch, add_special_tokens=False)
        batch, letters = [], 0
        yield ids
    yield from ids_of_texts(tokenizer, batch, add_special_tokens=False)


def _parts(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            while lines := file.readlines(LETTERS):
                yield "".join(lines)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"files: expected text in UTF-8, JSONL, or a store of specdec data, got {path} ({reason(error)})"
        ) from error
