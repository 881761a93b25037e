"""Fills a store from a writer or other files, and drops unsuitable conversations."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator
from itertools import count, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import transformers

from .. import __version__
from .conversation import read_records
from .duplicates import Duplicates
from .overlap import Overlap
from .record import DUPLICATE, EMPTY, EXCLUDED, Record
from .store import Run, Store, is_store
from .template import Template
from .writer import SelfWriter

# Assumed answer tokens per conversation, before any has ended.
EXPECTED_TOKENS = 200
MERGED_AT_ONCE = 64
# Dropped conversations in a row after which an error is raised, as the target generates nothing useful.
MAX_DROPPED = 1000


class Sieve:
    """Decides which conversations a store takes."""

    def __init__(self, store: Store, exclude: Overlap) -> None:
        """Index the store's answers, at about ten thousand conversations per second."""
        self.exclude = exclude
        self.duplicates = Duplicates()
        for _, record in store.records():
            self.duplicates.add(record.answers)

    def judge(self, record: Record) -> Record:
        """Drop a record's tokens, with the reason, if it should not be kept."""
        if not record.ids:
            return record.drop(EMPTY)
        if any(text in self.exclude for text in record.texts):
            return record.drop(EXCLUDED)
        return record if self.duplicates.add(record.answers) else record.drop(DUPLICATE)


def write_self_text(
    writer: SelfWriter,
    store: Store,
    sieve: Sieve,
    *,
    tokens: int,
    turns: list[str] | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> int:
    """Add conversations to a store until this run has enough answer tokens; a second call continues.

    Args:
        writer: generates the conversations.
        store: stores each one when it ends.
        sieve: a sieve for this store.
        tokens: answer tokens of this run.
        turns: user turns to answer, each once; None lets the target generate them.
        progress: called with this run's answer tokens so far.

    Returns:
        This run's answer tokens.

    Raises:
        ValueError: if too many conversations in a row are dropped.
    """
    run = store.begin(_asked(writer, turns), made_with(writer.target.device))
    earlier = [record for id, record in _without_ids(store) if id == run.id]
    ended = {record.number for record in earlier}
    written = sum(record.answer_tokens for record in earlier)
    progress(written)
    begun = len(ended)

    def numbers() -> Iterator[int]:
        """Yield numbers of conversations while the started ones are not expected to suffice."""
        nonlocal begun
        for number in count() if turns is None else range(len(turns)):
            if number in ended:
                continue
            each = written / len(ended) if ended else EXPECTED_TOKENS
            if written + each * (begun - len(ended)) >= tokens:
                return
            begun += 1
            yield number

    before, dropped = -1, 0
    while written < tokens and before < len(ended):
        before = len(ended)
        for records in writer.write(numbers(), turns):
            store.add(run, [sieve.judge(record) for record in records])
            ended.add(records[-1].number)
            new = sum(record.answer_tokens for record in records)
            dropped = 0 if new else dropped + 1
            if dropped == MAX_DROPPED:
                raise ValueError(
                    f"store: expected text that can be kept, got {dropped} conversations in a row that were not, the "
                    f"last one {records[-1].dropped}"
                )
            written += new
            progress(written)
    store.finish()
    return written


def _without_ids(store: Store) -> Iterator[tuple[int, Record]]:
    return (found for _, records in store.blocks() for found in records)


def _asked(writer: SelfWriter, turns: list[str] | None) -> dict[str, Any]:
    """Return the settings that a text depends on besides the model and the machine."""
    asked = {"seed": writer.seed, "batch": writer.batch, "answer_tokens": writer.answer_tokens}
    given = turns and hashlib.sha256("\n".join(turns).encode()).hexdigest()
    return {**asked, "turns": given} if given else asked


def made_with(device: torch.device) -> dict[str, Any]:
    """Return the machine and the versions that a text depends on."""
    cpu = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else None
    return {
        "specdec": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": device.type,
        "cpu_capability": cpu,
        "threads": torch.get_num_threads(),
    }


def merge(
    path: Path,
    store: Store,
    sieve: Sieve,
    template: Template,
) -> int:
    """Copy the conversations of another store or a JSONL file; those copied earlier are skipped.

    Args:
        path: a store of the same target, or a JSONL file as in `read_conversations`.
        store: the store to add to.
        sieve: a sieve for this store.
        template: the chat template of the target's tokenizer, with which the sieve reads texts.

    Returns:
        The number of conversations added.

    Raises:
        ValueError: if the file cannot be read or is of another target.
    """
    there = {(id, record.number, record.part) for id, record in _without_ids(store)}
    records = _of_store(path, store) if is_store(path) else _of_lines(path, store, template)
    added = 0
    while some := list(islice(records, MERGED_AT_ONCE)):
        new = [(run, r) for run, r in some if (run.id, r.number, r.part) not in there]
        for _, record in new:
            if record.ids:
                record.texts = template.texts_of(record.ids, record.spans)
                added += not sieve.judge(record).dropped
        for run, group in groupby(new, key=itemgetter(0)):
            store.add(run, [record for _, record in group])
    store.finish()
    return added


def _of_store(path: Path, store: Store) -> Iterator[tuple[Run, Record]]:
    """Yield runs and records of another store."""
    other = Store.read(path)
    if other.facts != store.facts:
        raise ValueError(f"merge: expected text of the target of {store.path}, got {path}")
    runs = {run.id: store.begin(run.asked, run.made_with) for run in other.runs}
    for id, record in other.records():
        yield runs[id], record


def _of_lines(path: Path, store: Store, template: Template) -> Iterator[tuple[Run, Record]]:
    """Yield records of a JSONL file; the same file always belongs to the same run."""
    vocabulary = store.facts["vocab_size"]
    run = store.begin(
        {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}, {"file": path.name}
    )
    for record in read_records(path, template.tokenizer):
        if max(record.ids) >= vocabulary:
            raise ValueError(
                f"merge: expected ids below {vocabulary}, got {max(record.ids)} in {path}"
            )
        yield run, record
