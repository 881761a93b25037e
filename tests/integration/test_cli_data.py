"""The command `data`: stores grow, resume after interruptions, and keep complete records."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from specdec.selftext.store import MAGIC, Store

ROOT = Path(__file__).parents[2]
ASKED = 150
EVERY_TURN = [(number, 0) for number in range(ASKED)]


@pytest.fixture
def append(tiny_folder, tmp_path):
    """Arguments that let the tiny model answer given turns, or its own."""
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(f'{{"text": "w{2 + i % 50} w{3 + i % 7}"}}\n' for i in range(ASKED)))

    def arguments(store, tokens, *more, own=False):
        given = () if own else ("--prompts", asked)
        few = ("--batch", 16, "--answer-tokens", 6)
        return (
            "data", "--append", store, "--model", tiny_folder, "--tokens", tokens, *few, *given, *more
        )  # fmt: skip

    return arguments


def records_of(path):
    return [record for _, record in Store.read(path).records()]


def kept(path):
    """Per conversation its tokens; each is there once."""
    records = records_of(path)
    found = {(record.number, record.part): record.ids for record in records}
    assert len(found) == len(records)
    return found


def answer_tokens(path):
    return sum(record.answer_tokens for record in records_of(path))


def test_data_reports_progress(append, run, tmp_path):
    said = run(*append(tmp_path / "x", 30)).err.splitlines()
    assert said[0] == "writing 0/30"
    assert said[-1] == "writing 30/30"


@pytest.mark.parametrize("own", [False, True])
def test_data_resumes_without_writing_duplicates(append, run, tmp_path, own):
    path = tmp_path / "x"
    run(*append(path, 30, own=own))
    first, written = kept(path), answer_tokens(path)
    said = run(*append(path, 300, own=own)).err.splitlines()
    assert said[0] == f"writing {written}/300"
    assert said[-1] == "writing 300/300"
    second = kept(path)
    assert list(second)[: len(first)] == list(first)
    assert first.items() <= second.items()
    assert answer_tokens(path) >= 300
    assert run(*append(path, 300, own=own)).err.splitlines() == ["writing 300/300"]
    assert kept(path) == second
    assert len(Store.read(path).runs) == 1


def test_data_ends_when_all_given_turns_are_answered(append, run, tmp_path):
    path = tmp_path / "x"
    run(*append(path, 10**9))
    assert sorted(kept(path)) == EVERY_TURN


def test_seed_with_changed_settings_is_rejected(append, run, refused, tmp_path):
    path = tmp_path / "x"
    run(*append(path, 30))
    before = path.read_bytes()
    line = refused(*append(path, 60, "--batch", 3))
    assert line.startswith(f"specdec: seed: expected one that is new to {path}")
    assert path.read_bytes() == before
    run(*append(path, 30, "--batch", 3, "--seed", 1))
    assert len(Store.read(path).runs) == 2


def test_merging_the_same_files_twice_adds_nothing(append, run, tmp_path, tiny_folder):
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt_ids": [3, 4], "answer_ids": [5, 6, 7]}\n' * 3)
    one, two = tmp_path / "one", tmp_path / "two"
    run(*append(one, 30))
    said = run(*append(one, 30)[:5], "--merge", lines).err.splitlines()
    assert said == [f"reading {lines} 0/1", f"{one}: 3 conversations from {lines}"]
    count = len(records_of(one))
    for added in (count, 0):
        said = run(*append(two, 30)[:5], "--merge", one, "--merge", lines).err
        assert f"{two}: {added} conversations from {one}\n" in said
        assert f"{two}: 0 conversations from {lines}\n" in said
        assert [r.ids for r in records_of(two)] == [r.ids for r in records_of(one)]
    out = run("data", "--stats", one, "--stats", lines, "--model", tiny_folder).out
    (row,) = [line.split() for line in out.splitlines() if " conversations " in line]
    assert row == ["│", "conversations", "│", f"{count}", "│", "3", "│"]


def test_file_of_another_format_is_rejected_unchanged(append, refused, tmp_path):
    path, other = tmp_path / "notes", tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE model (facts TEXT)")
    for text in (
        b"a line",
        b"two\nlines",
        b"[1]\n",
        b'{"a": 1}',
        b"\0",
        b"\xff\xfe",
        b'{"batch": 1}\n',
        b'{"prompt_ids": [3], "answer_ids": [4]}\n',
        MAGIC,
        other.read_bytes(),
    ):
        path.write_bytes(text)
        line = refused(*append(path, 30))
        assert line.startswith("specdec: store: expected ")
        assert str(path) in line
        assert path.read_bytes() == text


def test_second_writer_and_readers_are_rejected_while_a_writer_is_open(
    append, run, refused, tmp_path, tiny_folder
):
    path, other = tmp_path / "x", tmp_path / "other"
    for store in (path, other):
        run(*append(store, 30))
    before, facts = path.read_bytes(), Store.read(path).facts
    with Store.write(path, facts):
        for command in (
            append(path, 60),
            (*append(other, 30)[:5], "--merge", path),
            ("data", "--stats", path, "--model", tiny_folder),
        ):
            line = run(*command, code=2).err.splitlines()[-1]
            assert line == (f"specdec: store: expected one not in use, got {path}")
    assert path.read_bytes() == before
    run(*append(path, 60))


@pytest.mark.parametrize("pages", [5, 7])
def test_full_disk_gives_one_error_line_and_keeps_complete_records(
    append, run, tmp_path, monkeypatch, pages
):
    path, connect = tmp_path / "x", sqlite3.connect

    def small_disk(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    with monkeypatch.context() as filled:
        filled.setattr(sqlite3, "connect", small_disk)
        error = run(*append(path, 10**9), code=2).err.splitlines()[-1]
    assert error == f"specdec: {path}: No space left on device"
    assert list(tmp_path.glob("x*")) == [path]
    complete = kept(path)
    assert 0 < len(complete) < ASKED
    run(*append(path, 10**9))
    assert complete.items() <= kept(path).items()
    assert sorted(kept(path)) == EVERY_TURN


# Torch is imported once for several kills: each child is a command of its own. What it tells of was complete before
# the kill.
KILLS = """
import json, os, random, signal, time
import torch, transformers
from specdec.cli import main
from specdec.selftext import store, supply

store.BLOCK_TOKENS = 300
add = store.Store.add

def told(self, run, records):
    add(self, run, records)
    os.write(write, json.dumps([[r.number, r.part, r.ids] for r in records]).encode() + b'\\n')

store.Store.add = told
for _ in range(4):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        main()
    os.close(write)
    with open(read) as said:
        lines = [said.readline() for _ in range(random.randrange(1, 6))]
        time.sleep(random.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        print(*lines, said.read(), sep='', end='')
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_sigkill_loses_no_complete_record(append, run, tmp_path):
    path = tmp_path / "x"
    command = append(path, 10**9)
    done = subprocess.run(
        [sys.executable, "-c", KILLS, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [record for line in done.stdout.splitlines() for record in json.loads(line)]
    complete = {(number, part): ids for number, part, ids in told}
    assert len(complete) == len(told) >= 4, done.stderr
    run(*command)
    assert complete.items() <= kept(path).items()
    assert sorted(kept(path)) == EVERY_TURN
