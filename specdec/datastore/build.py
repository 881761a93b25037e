"""Builds and extends a store: shards are filled in order, and the manifest is written last."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from ..host.whole_file import check_folder, whole_file
from .order import SEPARATOR, Tokens, context_order, stored_type
from .store import MANIFEST, SUFFIXES, Datastore, Manifest, ShardFacts, check_tokenizer

SHARD_TOKENS = 1 << 25
"""Default tokens per shard: sorting takes up to 60 bytes per token. Each shard is searched separately."""
MAX_SHARD_TOKENS = 1 << 30
"""Most tokens per shard: positions are stored in 4 bytes."""
LOCK = ".lock"
# Names of a shard's files, and of incomplete files.
OWN = re.compile(rf"[0-9a-f]{{32}}({'|'.join(map(re.escape, SUFFIXES))})|\.specdec-[0-9a-f]{{32}}")
Ids = npt.NDArray[np.int64]
Progress = Callable[[str, int], None]


def build_datastore(
    path: Path,
    texts: Iterable[Sequence[int]],
    *,
    vocabulary_size: int,
    tokenizer: str | None = None,
    add: bool = False,
    shard_tokens: int | None = None,
    progress: Progress = lambda what, tokens: None,
) -> Manifest:
    """Write texts into a new store, or add them to an existing one.

    Adding rebuilds the last shard if it has room and leaves the others; the files equal those of building everything at
    once. Matches and continuations never cross from one text to another. A text longer than a shard is split.

    Args:
        path: the store's folder.
        texts: token ids per text; empty ones are skipped.
        vocabulary_size: upper bound of the ids, exclusive.
        tokenizer: `tokenizer_fingerprint` of the ids' tokenizer, if known.
        add: add to an existing store, or create one if there is none.
        shard_tokens: most tokens per shard; an existing store keeps its own.
        progress: called with the activity (reading or sorting) and the tokens read so far.

    Returns:
        The store's new manifest.

    Raises:
        OSError: naming the file that could not be written; the store is unchanged.
        ValueError: if the folder is not a store, an existing store is damaged or has another vocabulary, another writer
            has it open, a number or an id is out of range, or there is no text.
    """
    if shard_tokens is not None and not 1 <= shard_tokens <= MAX_SHARD_TOKENS:
        raise ValueError(f"shard_tokens: expected 1 to {MAX_SHARD_TOKENS}, got {shard_tokens}")
    if vocabulary_size < 1:
        raise ValueError(f"vocabulary_size: expected at least 1, got {vocabulary_size}")
    check_place(path, "store", add=add)
    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(path):
            check_place(path, "store", add=add)
            old = Datastore.open(path) if (path / MANIFEST).exists() else None
            if old is not None:
                _check(old, vocabulary_size, tokenizer)
                shard_tokens = old.manifest.shard_tokens
            writer = _Writer(path, old, vocabulary_size, shard_tokens or SHARD_TOKENS)
            return writer.run(texts, tokenizer, progress)
    finally:
        if made and not (path / MANIFEST).exists():
            with suppress(OSError):
                (path / LOCK).unlink()
                path.rmdir()


def check_place(path: Path, name: str, *, add: bool) -> None:
    """Raise ValueError, naming the argument `name`, unless a store can be built at `path`."""
    if path.is_dir():
        names = [file.name for file in path.iterdir() if not _is_own(file)]
        if names and (MANIFEST not in names or not add):
            expected = "a store to add to, or a new folder" if add else "a new or an empty folder"
            raise ValueError(f"{name}: expected {expected}, got {path}")
    check_folder(path, name)


def _is_own(file: Path) -> bool:
    """Return whether a file's name is that of a build; killed builds leave such files."""
    return file.name == LOCK or OWN.fullmatch(file.name) is not None


class _Writer:
    """Fills shards."""

    def __init__(
        self, path: Path, old: Datastore | None, vocabulary_size: int, shard_tokens: int
    ) -> None:
        self.path, self.old = path, old
        self.vocabulary_size, self.shard_tokens = vocabulary_size, shard_tokens
        self.dtype = stored_type(vocabulary_size)
        self.shards: list[ShardFacts] = [] if old is None else list(old.manifest.shards)
        self.known = {shard.id for shard in self.shards}
        self.pending: list[Tokens] = []
        """Texts of the current shard, in stored form."""
        self.tokens = self.read = 0

    def run(
        self, texts: Iterable[Sequence[int]], tokenizer: str | None, progress: Progress
    ) -> Manifest:
        """Write all texts, then the manifest."""
        self._clean()
        try:
            for text in texts:
                for part in self._parts(text):
                    if self._full(part):
                        progress("sorting", self.read)
                        self._flush()
                    self._take(part)
                progress("reading", self.read)
            if not self.read:
                raise ValueError("texts: expected at least one token, got none")
            progress("sorting", self.read)
            self._flush()
            if tokenizer is None and self.old is not None:
                tokenizer = self.old.manifest.tokenizer
            manifest = Manifest(
                self.vocabulary_size, tokenizer, self.shard_tokens, tuple(self.shards)
            )
            with whole_file(self.path / MANIFEST) as scratch, scratch.open("w") as file:
                file.write(json.dumps(manifest.as_json(), indent=1) + "\n")
            self.known = {shard.id for shard in self.shards}
            return manifest
        finally:
            self._clean()

    def _parts(self, text: Sequence[int]) -> Iterator[Tokens]:
        """Check a text and split it into parts that fit into a shard."""
        ids: Ids = np.asarray(text, np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocabulary_size:
            raise ValueError(
                f"texts: expected ids from 0 to {self.vocabulary_size - 1}, got {ids.min()} to {ids.max()}"
            )
        stored: Tokens = (ids + 1).astype(self.dtype)
        for begin in range(0, len(ids), self.shard_tokens):
            yield stored[begin : begin + self.shard_tokens]

    def _full(self, part: Tokens) -> bool:
        return bool(self.pending) and self.tokens + len(part) > self.shard_tokens

    def _take(self, part: Tokens) -> None:
        if (
            not self.read
            and self.shards
            and self.shards[-1].tokens + len(part) <= self.shard_tokens
        ):
            # Continue the last shard of the existing store.
            self.pending, self.tokens = self._texts_of_last(), self.shards.pop().tokens
        self.pending.append(part)
        self.tokens += len(part)
        self.read += len(part)

    def _texts_of_last(self) -> list[Tokens]:
        assert self.old is not None
        forwards: Tokens = self.old.shards[-1].tokens[::-1]
        ends = np.flatnonzero(forwards == SEPARATOR)
        return [forwards[begin + 1 : end] for begin, end in pairwise(ends)]

    def _flush(self) -> None:
        """Sort a shard and write its files."""
        zero = np.zeros(1, self.dtype)
        joined = np.concatenate([zero, *(x for text in self.pending for x in (text, zero))])
        # Joining converts to the machine's byte order.
        stored: Tokens = joined[::-1].astype(self.dtype)
        order = context_order(stored)
        contents = stored.data.cast("B"), order.astype("<u4").data.cast("B")
        name = uuid.uuid4().hex
        for suffix, content in zip(SUFFIXES, contents, strict=True):
            with whole_file(self.path / f"{name}{suffix}") as scratch, scratch.open("wb") as file:
                file.write(content)
        sums = [hashlib.sha256(content).hexdigest() for content in contents]
        self.shards.append(ShardFacts(name, len(self.pending), self.tokens, len(order), *sums))
        self.pending, self.tokens = [], 0

    def _clean(self) -> None:
        """Delete files that the manifest does not list, left by killed, failed or earlier builds."""
        for file in self.path.iterdir():
            if file.name != LOCK and _is_own(file) and file.stem not in self.known:
                with suppress(OSError):
                    file.unlink()


def _check(old: Datastore, vocabulary_size: int, tokenizer: str | None) -> None:
    if old.manifest.vocabulary_size != vocabulary_size:
        raise ValueError(
            f"store: expected a vocabulary of {vocabulary_size}, got {old.manifest.vocabulary_size} in {old.path}"
        )
    check_tokenizer(old.path, old.manifest, tokenizer)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lock the store against other writers."""
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"store: expected one without another writer, got {path}") from error
    try:
        yield
    finally:
        lock.release()
