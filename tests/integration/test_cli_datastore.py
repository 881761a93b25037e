"""The command `datastore`: builds stores from files; one line per error."""

import gzip
import json

import pytest

from specdec.datastore.store import Datastore
from specdec.selftext.store import Store
from store_records import FACTS, record


@pytest.fixture
def built(run, tiny_folder, tmp_path):
    def command(*files, out="s", more=()):
        return run("datastore", "build", *files, "-o", tmp_path / out, "--model", tiny_folder, *more)  # fmt: skip

    return command


def texts_of(path):
    shard = Datastore.open(path).shards[0]
    joined = "".join(chr(token) for token in shard.tokens[::-1].tolist())
    return [[ord(letter) - 1 for letter in text] for text in joined.strip("\0").split("\0")]


def test_text_jsonl_and_self_text_become_one_store(built, run, tmp_path):
    text, lines, packed = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.jsonl.gz"
    text.write_text("w1 w2\nw3")
    lines.write_text('{"text": "w4 w5"}\n\n{"prompt_ids": [6], "answer_ids": [7, 8]}\n')
    with gzip.open(packed, "wt") as file:
        file.write(json.dumps({"text": "w9 w10"}))
    with Store.write(tmp_path / "d.db", FACTS) as store:
        kept = record(1)
        store.add(store.begin({"seed": 1}, {}), [kept])
    said = built(text, lines, packed, tmp_path / "d.db")
    assert "sorting 4/4" in said.err and "tokens in 5 texts" in said.err
    found = texts_of(tmp_path / "s")
    assert found[:4] == [[1, 2, 3], [4, 5], [6, 7, 8], [9, 10]] and found[4] == kept.ids
    out = run("datastore", "info", tmp_path / "s").out
    assert "texts" in out and "tokenizer" in out


def test_text_field_can_be_chosen_and_stores_can_be_extended(built, tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"code": "w4 w5"}\n')
    for _ in range(2):
        built(lines, more=("--field", "code", "--add"))
    assert texts_of(tmp_path / "s") == [[4, 5], [4, 5]]


def test_bad_input_gives_one_error_line(refused, tiny_folder, tmp_path):
    good, other, bytes_ = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.txt"
    good.write_text("w1 w2")
    other.write_text('{"words": 1}\n')
    bytes_.write_bytes(b"\xff\xfe\xfa")
    out = ("-o", tmp_path / "s", "--model", tiny_folder)
    for arguments, said in (
        ((tmp_path / "none", *out), "files: expected readable text"),
        ((tmp_path, *out), "files: expected readable text"),
        ((other, *out), "files: expected an object with a text 'text'"),
        ((bytes_, *out), "files: expected text in UTF-8"),
        ((good, "-o", good, "--model", tiny_folder), "out: expected a folder"),
        ((good, "-o", tmp_path, "--model", tiny_folder), "out: expected a new or an empty folder"),
        ((good, *out, "--shard-tokens", 0), "shard_tokens: expected 1 to"),
        ((good,), "Missing option"),
    ):
        assert said in refused("datastore", "build", *arguments)
    assert not (tmp_path / "s").exists()
    assert "store: expected a folder" in refused("datastore", "info", tmp_path)
