"""`Store`: a compact store of conversations in one SQLite file, about one byte per token.

SQLite makes changes atomic, also if the process is killed, and allows one writer at a time. A conversation is stored when
it ends. When enough have ended, their ids are compressed into one block with LZMA, which readers unpack on access.

    model:    facts of the target that generated the text
    run:      request (seed and settings) and origin (versions and device)
    pending:  conversations since the last block
    block:    conversations packed: their records (JSON, deflated) and their ids (LZMA)
"""

from __future__ import annotations

import errno
import json
import lzma
import operator
import os
import sqlite3
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..host.reasons import reason
from .record import Conversation, Record

MAGIC = b"SQLite format 3\x00"
APPLICATION = 0x73706463  # "spdc", distinguishes it from other SQLite files
VERSION = 1
# Tokens per block. From 16 to 262 thousand tokens, larger blocks compress a few percent better and unpack slower.
BLOCK_TOKENS = 65536
UNPACKED_BLOCKS = 16
SCHEMA = """
    CREATE TABLE model (facts TEXT NOT NULL);
    CREATE TABLE run (id INTEGER PRIMARY KEY, asked TEXT NOT NULL, made_with TEXT NOT NULL);
    CREATE TABLE pending (id INTEGER PRIMARY KEY, record TEXT NOT NULL, ids BLOB NOT NULL);
    CREATE TABLE block (id INTEGER PRIMARY KEY, records BLOB NOT NULL, ids BLOB NOT NULL, crc INTEGER NOT NULL);
"""
PENDING = 0
Ids = npt.NDArray[np.uint32] | npt.NDArray[np.uint16]


class Run(NamedTuple):
    """One run of a writer, or one merged file."""

    id: int
    asked: dict[str, Any]
    """Seed and settings, on which the text depends besides the model and the machine."""
    made_with: dict[str, Any]
    """Versions and device."""


class Store:
    """An open store; created by `read` or `write`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Create a store from a connection; raise ValueError if the file is not a store."""
        self.path, self.connection = path, connection
        with _naming(path):
            found = [connection.execute(f"PRAGMA {x}").fetchone()[0] for x in PRAGMAS]
            if found != list(PRAGMAS.values()):
                raise ValueError(
                    f"store: expected a store of specdec data, got another SQLite file in {path}"
                )
            (facts,) = connection.execute("SELECT facts FROM model").fetchone()
            self.facts: dict[str, Any] = json.loads(facts)
            """Facts of the target, as in `TargetFacts`."""
            wide = self.facts["vocab_size"] > 1 << 16
        self.dtype = np.dtype("<u4" if wide else "<u2")
        bits = 2 if wide else 1  # low bits of a position that select a byte of an id
        self.filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 2, "lp": bits, "pb": bits}]
        self.unpacked: dict[int, Ids] = {}
        """The ids of the blocks read last."""

    @classmethod
    def read(cls, path: Path) -> Store:
        """Open a store for reading; it cannot be written while it is open.

        Raises:
            ValueError: if the file is not a store or damaged, or a writer has it open.
        """
        real = Path(os.path.realpath(path))
        # SQLite undoes a killed writer's incomplete change at the first read, which needs write access.
        left = real.with_name(f"{real.name}-journal").exists()
        uri = f"{real.as_uri()}?mode={'rw' if left else 'ro'}"
        with _naming(path):
            connection = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None)
            connection.execute("BEGIN")
            try:
                store = cls(path, connection)
            except BaseException:
                connection.close()
                raise
        weakref.finalize(store, connection.close)  # closes it as soon as the store is unused
        return store

    @classmethod
    @contextmanager
    def write(cls, path: Path, facts: dict[str, Any]) -> Iterator[Store]:
        """Open a store as its only writer; creates it if there is no file.

        Args:
            path: the file.
            facts: the target's `TargetFacts` as a dictionary.

        Raises:
            OSError: naming the file, if it cannot be written; complete changes stay.
            ValueError: if the file is not a store or another target's, or another process has it open.
        """
        if path.exists() and path.stat().st_size and not is_store(path):
            raise ValueError(f"store: expected a store of specdec data, got {path}")
        with _naming(path):
            opened = sqlite3.connect(os.path.realpath(path), timeout=0, isolation_level=None)
        with closing(opened) as connection:
            with _naming(path):
                _prepare(connection, facts)
            store = cls(path, connection)
            if store.facts != facts:
                raise ValueError(
                    f"store: expected text of {_listed(facts)}, got text of {_listed(store.facts)} in {path}"
                )
            yield store

    @property
    def runs(self) -> list[Run]:
        """Return all runs of the store."""
        with _naming(self.path):
            rows = self.connection.execute("SELECT id, asked, made_with FROM run ORDER BY id")
            return [Run(id, json.loads(asked), json.loads(made)) for id, asked, made in rows]

    def begin(self, asked: dict[str, Any], made_with: dict[str, Any]) -> Run:
        """Start a run, or continue the run with the same request.

        Raises:
            ValueError: if a run with other settings has the same seed.
        """
        for run in self.runs:
            if run.asked == asked:
                return run
            if "seed" in asked and run.asked.get("seed") == asked["seed"]:
                raise ValueError(
                    f"seed: expected one that is new to {self.path}, or its settings {run.asked}, "
                    f"got {asked}"
                )
        with self._change():
            row = json.dumps(asked), json.dumps(made_with)
            inserted = self.connection.execute(
                "INSERT INTO run (asked, made_with) VALUES (?, ?)", row
            )
        assert inserted.lastrowid is not None
        return Run(inserted.lastrowid, asked, made_with)

    def add(self, run: Run, records: Sequence[Record]) -> None:
        """Store finished conversations; they are on disk when this returns."""
        rows = [
            (json.dumps([run.id, *record.facts()]), np.array(record.ids, self.dtype).tobytes())
            for record in records
        ]
        with self._change():
            self.connection.executemany("INSERT INTO pending (record, ids) VALUES (?, ?)", rows)
            sizes = self.connection.execute("SELECT total(length(ids)) FROM pending")
            if sizes.fetchone()[0] >= BLOCK_TOKENS * self.dtype.itemsize:
                self._pack()

    def finish(self) -> None:
        """Pack pending conversations, and shrink the file."""
        with self._change():
            packed = self._pack()
        if packed:
            with _naming(self.path):
                self.connection.execute("VACUUM")

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield every conversation with the id of its run; dropped ones have no tokens."""
        for block, records in self.blocks():
            at, ids = 0, self.ids_of_block(block)
            for run, record in records:
                length = sum(record.spans)
                record.ids = ids[at : at + length].tolist()
                at += length
                yield run, record

    def blocks(self) -> Iterator[tuple[int, list[tuple[int, Record]]]]:
        """Yield the runs and records of every block, without ids."""
        with _naming(self.path):
            packed = self.connection.execute("SELECT id, records FROM block ORDER BY id").fetchall()
            rows = self.connection.execute("SELECT record FROM pending ORDER BY id").fetchall()
            blocks = [(block, _records(zlib.decompress(text))) for block, text in packed]
            blocks.append((PENDING, _records(f"[{','.join(record for (record,) in rows)}]")))
        yield from blocks

    def ids_of_block(self, block: int) -> Ids:
        """Return the ids of a block, one conversation after another."""
        if block not in self.unpacked:
            if len(self.unpacked) == UNPACKED_BLOCKS:
                self.unpacked.pop(next(iter(self.unpacked)))
            self.unpacked[block] = self._unpack(block)
        return self.unpacked[block]

    def _pack(self) -> bool:
        rows = self.connection.execute("SELECT record, ids FROM pending ORDER BY id").fetchall()
        if rows:
            records = zlib.compress(f"[{','.join(record for record, _ in rows)}]".encode(), 9)
            ids = lzma.compress(b"".join(x for _, x in rows), lzma.FORMAT_RAW, filters=self.filters)
            self.connection.execute(
                "INSERT INTO block (records, ids, crc) VALUES (?, ?, ?)",
                (records, ids, zlib.crc32(ids)),
            )
            self.connection.execute("DELETE FROM pending")
        return bool(rows)

    def _unpack(self, block: int) -> Ids:
        with _naming(self.path):
            if block == PENDING:
                rows = self.connection.execute("SELECT ids FROM pending ORDER BY id")
                return np.frombuffer(b"".join(ids for (ids,) in rows), self.dtype)
            query = "SELECT ids, crc FROM block WHERE id = ?"
            packed, crc = self.connection.execute(query, (block,)).fetchone()
            if zlib.crc32(packed) != crc:
                raise ValueError(f"block {block} is damaged")
            ids = lzma.decompress(packed, lzma.FORMAT_RAW, filters=self.filters)
        return np.frombuffer(ids, self.dtype)

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Run a `with` block as one transaction."""
        with _naming(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
                self.unpacked.pop(PENDING, None)
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise


PRAGMAS = {"application_id": APPLICATION, "user_version": VERSION}


def _prepare(connection: sqlite3.Connection, facts: dict[str, Any]) -> None:
    """Lock the file, and create the tables of a new store."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")
    if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        for name, value in PRAGMAS.items():
            connection.execute(f"PRAGMA {name} = {value}")
        connection.execute("INSERT INTO model VALUES (?)", (json.dumps(facts),))
    connection.execute("COMMIT")


def is_store(path: Path) -> bool:
    """Return whether a file has the header of a store."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False  # the reader of another format reports the reason


class StoredConversations(Sequence[Conversation]):
    """A store's conversations in order, unpacked on access, a few blocks at a time."""

    def __init__(self, store: Store) -> None:
        """Read the positions of all conversations."""
        self.store = store
        self.places: list[tuple[int, int, int, int]] = []
        """Per conversation: block, and in it the first token, the first token of the last answer, and the end."""
        for block, records in store.blocks():
            end = 0
            for _, record in records:
                begin, end = end, end + sum(record.spans)
                if record.spans:
                    self.places.append((block, begin, end - record.spans[-1], end))

    def __len__(self) -> int:
        """Return the number of conversations."""
        return len(self.places)

    def __getitem__(self, at: Any) -> Any:
        """Return one conversation, or a slice of them."""
        block, begin, answer, end = self.places[operator.index(at)]
        ids = self.store.ids_of_block(block)
        return Conversation(ids[begin:answer].tolist(), ids[answer:end].tolist())


def _records(text: str | bytes) -> list[tuple[int, Record]]:
    return [(run, Record.of(facts, [])) for run, *facts in json.loads(text)]


def _listed(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:16]}" for name, value in facts.items())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into errors that name the file."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise ValueError(f"store: expected one not in use, got {path}") from error
        if code in OS_ERRORS:
            raise OSError(OS_ERRORS[code], os.strerror(OS_ERRORS[code]), str(path)) from error
        raise _damaged(path, error) from error
    except (lzma.LZMAError, zlib.error, KeyError, TypeError, ValueError) as error:
        if str(error).startswith("store: "):
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"store: expected an undamaged file, got {path} ({reason(error)})")


OS_ERRORS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
}
