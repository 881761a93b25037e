"""The store after damage, kills and full disks, and between processes: whole after any end, one writer."""

import contextlib
import gc
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specdec.selftext.conversation import read_conversations
from specdec.selftext.store import Store
from store_records import FACTS, record

ROOT = Path(__file__).parents[3]


def read_all(path):
    opened = Store.read(path)
    return list(opened.records()), opened.runs


def test_error_names_the_damaged_store(tmp_path):
    path = tmp_path / "a.db"
    with Store.write(path, FACTS) as store:
        run = store.begin({"seed": 1}, {})
        for number in range(300):
            store.add(run, [record(number, 60)])
        store.finish()
        store.add(run, [record(300)])
    whole = path.read_bytes()
    expected = [r.ids for _, r in Store.read(path).records()]
    generator, told = random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        at = generator.randrange(100, len(whole))
        damaged[at] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged[: generator.choice([len(whole), at])])
        try:
            found = [r.ids for _, r in Store.read(path).records()]
        except ValueError as error:
            assert str(error).startswith("store: expected "), error
            assert str(path) in str(error)
            told += 1
        else:  # of a byte that nothing uses, or of what is pending
            assert found[:300] == expected[:300]
    assert told > 100
    gc.collect()  # errors hold on to what was open
    path.write_bytes(whole)
    for table, column in (
        ("block", "records"),
        ("block", "ids"),
        ("pending", "record"),
        ("run", "asked"),
    ):
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"UPDATE {table} SET {column} = 'x'")
        with pytest.raises(ValueError, match=r"store: expected an undamaged file, got .*a\.db"):
            read_all(path)
        gc.collect()
        path.write_bytes(whole)


def test_next_reader_rolls_back_a_killed_transaction(tmp_path):
    path = tmp_path / "a.db"
    with Store.write(path, FACTS) as store:
        run = store.begin({}, {})
        for number in range(50):
            store.add(run, [record(number, 60)])
    half = (
        "import os, signal, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "for s in ('PRAGMA cache_size = 1', 'BEGIN IMMEDIATE', "
        "'UPDATE pending SET record = record || hex(randomblob(9000))'): c.execute(s)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", half, str(path)], check=False)
    assert path.with_name("a.db-journal").exists()
    assert [r.number for _, r in Store.read(path).records()] == list(range(50))


def test_open_reader_blocks_writers(tmp_path):
    path = tmp_path / "a.db"
    with Store.write(path, FACTS) as store:
        store.add(store.begin({}, {}), [record(0)])
    conversations = read_conversations(path)
    with pytest.raises(ValueError, match="not in use"), Store.write(path, FACTS):
        pass
    assert len(conversations[0].prompt_ids) == 12
    del conversations
    with Store.write(path, FACTS) as store:
        store.finish()


def test_second_writer_is_rejected_and_the_first_continues(tmp_path):
    path = tmp_path / "a.db"
    with Store.write(path, FACTS) as first:
        run = first.begin({"seed": 1}, {})
        with (
            pytest.raises(ValueError, match=r"store: expected one not in use, got .*a\.db"),
            Store.write(path, FACTS),
        ):
            pass
        first.add(run, [record(0)])
    with Store.write(path, FACTS) as second:
        second.add(second.begin({"seed": 1}, {}), [record(1)])
    assert [r.number for _, r in Store.read(path).records()] == [0, 1]


def test_full_disk_error_names_the_file_and_keeps_complete_records(tmp_path):
    path = tmp_path / "a.db"
    with (
        pytest.raises(OSError, match="No space left on device") as full,
        Store.write(path, FACTS) as store,
    ):
        run = store.begin({}, {})
        (pages,) = store.connection.execute("PRAGMA page_count").fetchone()
        store.connection.execute(f"PRAGMA max_page_count = {pages + 3}")
        for number in range(1000):
            store.add(run, [record(number, 60)])
    assert full.value.filename == str(path)
    kept = [r.number for _, r in Store.read(path).records()]
    assert kept == list(range(len(kept)))
    assert 0 < len(kept) < 1000
    with Store.write(path, FACTS) as store:
        store.add(store.begin({}, {}), [record(len(kept))])
        store.finish()
    assert len(list(Store.read(path).records())) == len(kept) + 1


WRITES = """
import sys
from pathlib import Path
from specdec.selftext import store as module
from specdec.selftext.record import Record
module.BLOCK_TOKENS = 300
facts = {"model_type": "llama", "hidden_size": 8, "vocab_size": 61, "layers": 2, "fingerprint": "ab"}
with module.Store.write(Path(sys.argv[1]), facts) as store:
    run = store.begin({}, {})
    number = len(list(store.records()))
    while True:
        store.add(run, [Record(number, 0, "facts", 0.0, [number % 61] * 20, [5, 15])])
        print(number, flush=True)
        number += 1
"""


def test_sigkill_loses_no_acknowledged_record(tmp_path):
    path, said = tmp_path / "a.db", -1
    for wait in (0.0, 0.01, 0.02, 0.05, 0.1):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        writer.stdout.readline()
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        lines = writer.stdout.read().split("\n")
        writer.wait()
        said = max([said, *(int(line) for line in lines[:-1] if line)])
        kept = [r.number for _, r in Store.read(path).records()]
        assert kept == list(range(len(kept)))
        assert len(kept) > said
