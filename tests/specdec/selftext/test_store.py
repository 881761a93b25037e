"""The store of conversations: small, unpacked where it is read, and of one target alone."""

import sqlite3

import pytest

from specdec.selftext import store as store_module
from specdec.selftext.conversation import Joined, read_conversations
from specdec.selftext.record import DUPLICATE, Conversation, Record
from specdec.selftext.store import Store, StoredConversations, is_store
from store_records import FACTS, record


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


def test_seed_is_bound_to_its_settings(tmp_path):
    with Store.write(tmp_path / "a.db", FACTS) as store:
        first = store.begin({"seed": 1, "batch": 2}, {})
        assert store.begin({"seed": 1, "batch": 2}, {}).id == first.id
        with pytest.raises(
            ValueError, match="seed: expected one that is new to .* or its settings"
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
        pytest.raises(ValueError, match="store: expected text of .*llama.*, got text of"),
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
