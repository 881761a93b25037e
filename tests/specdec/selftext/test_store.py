"""The store of conversations: small, whole after any end, one writer, unpacked where it is read."""

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

from specdec.selftext import store as store_module
from specdec.selftext.conversation import Joined, read_conversations
from specdec.selftext.record import DUPLICATE, Conversation, Record
from specdec.selftext.store import Store, StoredConversations, is_store

ROOT = Path(__file__).parents[3]
FACTS = {
    "model_type": "llama",
    "hidden_size": 8,
    "vocab_size": 61,
    "layers": 2,
    "fingerprint": "ab",
}


def record(number, tokens=20, part=0):
    ids = [(number * 31 + i * i) % 61 for i in range(tokens)]
    return Record(number, part, "facts", 0.8, ids, [5, 3, 4, tokens - 12], cut=number)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(store_module, "BLOCK_TOKENS", 100)


def same(found, expected):
    return [(r.facts(), r.ids) for r in found] == [(r.facts(), r.ids) for r in expected]


def test_records_are_read_back_in_order(tmp_path, small_blocks):
    path = tmp_path / "a.db"
    records = [record(n, 20 + n) for n in range(12)]
    with Store.write(path, FACTS) as store:
        run = store.begin({"seed": 3}, {"torch": "x"})
        for number, one in enumerate(records):
            store.add(run, [one])
            kept = list(Store.records(store))
            assert same((r for _, r in kept), records[: number + 1])
        store.finish()
    assert is_store(path)
    store = Store.read(path)
    assert [run.asked for run in store.runs] == [{"seed": 3}]
    assert same((r for _, r in store.records()), records)
    conversations = read_conversations(path)
    assert isinstance(conversations, StoredConversations)
    assert [c.prompt_ids + c.answer_ids for c in conversations] == [r.ids for r in records]
    assert conversations[-1] == Conversation(records[-1].ids[:12], records[-1].ids[12:])


def test_dropped_conversations_are_stored_but_not_used_for_training(tmp_path):
    with Store.write(tmp_path / "a.db", FACTS) as store:
        run = store.begin({"seed": 3}, {})
        store.add(run, [record(0), record(1).drop(DUPLICATE), record(2)])
    assert [r.dropped for _, r in Store.read(tmp_path / "a.db").records()] == ["", DUPLICATE, ""]
    assert len(read_conversations(tmp_path / "a.db")) == 2


@pytest.mark.parametrize("vocabulary", [61, 1 << 16, (1 << 16) + 1, 262_144])
def test_ids_of_any_vocabulary_size_are_stored(tmp_path, vocabulary, small_blocks):
    ids = [0, 1, vocabulary - 1, vocabulary // 2] * 30
    with Store.write(tmp_path / "a.db", {**FACTS, "vocab_size": vocabulary}) as store:
        run = store.begin({}, {})
        store.add(run, [Record(0, 0, "facts", 0.0, ids, [1, 119])])
        store.add(run, [Record(1, 0, "facts", 0.0, ids[:50], [1, 49])])
    assert [r.ids for _, r in Store.read(tmp_path / "a.db").records()] == [ids, ids[:50]]


def test_store_takes_about_one_byte_per_token(tmp_path):
    """Words of a skewed vocabulary, as text has them; two bytes as they are."""
    ids = [min(int(1 / (0.001 + ((i * 7919) % 1000) / 1000)), 900) * 50 for i in range(150_000)]
    path = tmp_path / "a.db"
    with Store.write(path, {**FACTS, "vocab_size": 49152}) as store:
        run = store.begin({}, {})
        for begin in range(0, len(ids), 250):
            store.add(run, [Record(begin, 0, "facts", 0.0, ids[begin : begin + 250], [30, 220])])
        store.finish()
    assert path.stat().st_size < 1.1 * len(ids)


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
        with pytest.raises(ValueError, match=r"store: expected a whole one, got .*a\.db"):
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
    with pytest.raises(ValueError, match="nobody else uses"), Store.write(path, FACTS):
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
            pytest.raises(
                ValueError, match=r"store: expected one that nobody else uses, got .*a\.db"
            ),
            Store.write(path, FACTS),
        ):
            pass
        first.add(run, [record(0)])
    with Store.write(path, FACTS) as second:
        second.add(second.begin({"seed": 1}, {}), [record(1)])
    assert [r.number for _, r in Store.read(path).records()] == [0, 1]


def test_seed_is_bound_to_its_settings(tmp_path):
    with Store.write(tmp_path / "a.db", FACTS) as store:
        first = store.begin({"seed": 1, "batch": 2}, {})
        assert store.begin({"seed": 1, "batch": 2}, {}).id == first.id
        with pytest.raises(
            ValueError, match="seed: expected one that is new to .* or the settings"
        ):
            store.begin({"seed": 1, "batch": 3}, {})
        assert store.begin({"seed": 2, "batch": 3}, {}).id != first.id
        assert len({store.begin({"sha256": x}, {}).id for x in "aab"}) == 2


def test_store_of_another_target_is_rejected_unchanged(tmp_path):
    path = tmp_path / "a.db"
    with Store.write(path, FACTS) as store:
        store.add(store.begin({}, {}), [record(0)])
    before = path.read_bytes()
    with (
        pytest.raises(ValueError, match="store: expected one of text by .*llama.*, got one by"),
        Store.write(path, {**FACTS, "layers": 3}),
    ):
        pass
    assert path.read_bytes() == before


def test_other_files_are_rejected_unchanged(tmp_path):
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE model (facts TEXT)")
    connection.close()
    texts = {
        "text": b"a line\n",
        "magic": store_module.MAGIC + b"no more",
        "other.db": other.read_bytes(),
    }
    with Store.write(tmp_path / "whole.db", FACTS) as store:
        store.add(store.begin({}, {}), [record(n) for n in range(500)])
    whole = (tmp_path / "whole.db").read_bytes()
    texts["half"] = whole[: len(whole) // 2]
    for name, content in texts.items():
        path = tmp_path / name
        path.write_bytes(content)
        for opened in (
            lambda p: Store.write(p, FACTS).__enter__(),
            lambda p: list(Store.read(p).records()),
        ):
            with pytest.raises(ValueError, match=f"store: expected .*{name}"):
                opened(path)
        assert path.read_bytes() == content


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


def test_symbolic_links_are_followed(tmp_path):
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "real.db")
    with Store.write(link, FACTS) as store:
        store.add(store.begin({}, {}), [record(0)])
    assert link.is_symlink()
    assert len(read_conversations(tmp_path / "real.db")) == 1


def test_number_of_unpacked_blocks_is_bounded(tmp_path, small_blocks, monkeypatch):
    with Store.write(tmp_path / "a.db", FACTS) as store:
        run = store.begin({}, {})
        for number in range(200):
            store.add(run, [record(number)])
        store.finish()
    conversations = read_conversations(tmp_path / "a.db")
    unpacked = conversations.store.unpacked
    assert len(unpacked) == 0
    assert len(conversations[7].prompt_ids) == 12
    assert len(unpacked) == 1
    assert [len(c.answer_ids) for c in conversations] == [8] * 200
    assert len(unpacked) == store_module.UNPACKED_BLOCKS


def test_joined_files_are_one_sequence(tmp_path):
    one, two = ([Conversation([n], [n]) for n in part] for part in (range(3), range(3, 5)))
    joined = Joined([one, two])
    assert [c.prompt_ids[0] for c in joined] == [0, 1, 2, 3, 4]
    assert [c.prompt_ids[0] for c in joined[2:4]] == [2, 3]
    assert (len(joined), len(joined[3:]), joined[-1].prompt_ids) == (5, 2, [4])
    with pytest.raises(IndexError):
        joined[5]


def test_store_opened_for_reading_cannot_be_written(tmp_path):
    path = tmp_path / "a.db"
    with Store.write(path, FACTS) as store:
        store.add(store.begin({}, {}), [record(0)])
    before, opened = path.read_bytes(), Store.read(path)
    for change in (lambda: opened.begin({"seed": 1}, {}), opened.finish):
        with pytest.raises((OSError, ValueError), match="Read-only|store: expected"):
            change()
    assert path.read_bytes() == before
