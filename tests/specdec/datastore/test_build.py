"""Building a store: at once or in parts, atomically, by one writer."""

import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from specdec.datastore import build
from specdec.datastore.build import build_datastore
from specdec.datastore.store import Datastore, Manifest

TEXTS = [[1, 2, 3, 4], [5, 6], [], [1, 2, 3], [7] * 9, [2, 3]]


def made(path, texts=TEXTS, **options):
    return build_datastore(path, texts, vocabulary_size=8, **options)


def contents(path):
    """Everything but the names of the files."""
    manifest = Manifest.read(path)
    return [replace(shard, id="") for shard in manifest.shards], manifest.tokens


@pytest.mark.parametrize("shard_tokens", [4, 7, 1000])
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_adding_equals_building_at_once(tmp_path, shard_tokens, cut):
    made(tmp_path / "whole", shard_tokens=shard_tokens)
    made(tmp_path / "parts", TEXTS[:cut], shard_tokens=shard_tokens)
    made(tmp_path / "parts", TEXTS[cut:], add=True)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    names = {f"{shard.id}{end}" for shard in Manifest.read(tmp_path / "parts").shards for end in (".tokens", ".order")}  # fmt: skip
    assert {file.name for file in (tmp_path / "parts").iterdir()} == {*names, "store.json", ".lock"}


def test_full_shards_keep_their_files(tmp_path):
    first = made(tmp_path / "s", [[1, 2, 3]], shard_tokens=4).shards
    assert made(tmp_path / "s", [[4, 5]], add=True).shards[:1] == first


def test_text_longer_than_a_shard_is_split(tmp_path):
    manifest = made(tmp_path / "s", [[1, 2, 3, 4, 5]], shard_tokens=2)
    assert [shard.tokens for shard in manifest.shards] == [2, 2, 1]
    assert Datastore.open(tmp_path / "s").longest([3], 8).continuations(5, 2).tolist() == [[4, -1]]


def test_repeated_texts_are_all_stored(tmp_path):
    made(tmp_path / "s", [[1, 2]] * 5)
    assert Datastore.open(tmp_path / "s").longest([1], 8).total == 5


@pytest.mark.parametrize("texts", [[], [[]], [[], []]])
def test_building_from_no_text_raises_and_leaves_no_files(tmp_path, texts):
    with pytest.raises(ValueError, match="texts: expected at least one token"):
        made(tmp_path / "s", texts)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("change", [{"shard_tokens": 0}, {"shard_tokens": 2**31}, {"vocabulary_size": 0}], ids=str)  # fmt: skip
def test_error_names_the_number_out_of_range(tmp_path, change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}: expected"):
        build_datastore(tmp_path / "s", TEXTS, **{"vocabulary_size": 8} | change)


@pytest.mark.parametrize("ids", [[1, 8], [-1]])
def test_out_of_range_ids_are_rejected(tmp_path, ids):
    with pytest.raises(ValueError, match="texts: expected ids from 0 to 7, got"):
        made(tmp_path / "s", [ids])


def test_other_folders_are_rejected_unchanged(tmp_path):
    (tmp_path / "note").write_text("mine")
    for add, expected in ((False, "a new or an empty folder"), (True, "a store to add to")):
        with pytest.raises(ValueError, match=f"store: expected {expected}"):
            made(tmp_path, add=add)
    made(tmp_path / "s")
    with pytest.raises(ValueError, match="store: expected a new or an empty folder"):
        made(tmp_path / "s")
    assert (tmp_path / "note").read_text() == "mine"


@pytest.mark.parametrize("name", ["wiki.train.tokens", "x.order", ".specdec-mine"])
def test_foreign_files_are_never_deleted(tmp_path, name):
    """A name that only looks like one of a shard's is no left-over."""
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match="store: expected"):
        made(tmp_path)
    made(tmp_path / "s")
    (tmp_path / "s" / name).write_text("precious")
    made(tmp_path / "s", [[1]], add=True)
    for folder in (tmp_path, tmp_path / "s"):
        assert (folder / name).read_text() == "precious"


def test_manifest_with_a_smaller_vocabulary_is_rejected(tmp_path):
    made(tmp_path / "s")
    manifest = tmp_path / "s" / "store.json"
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(said | {"vocabulary_size": 5}))
    with pytest.raises(ValueError, match="store: expected ids below 5, as store.json says, got 7"):
        Datastore.open(tmp_path / "s")


def test_adding_with_another_vocabulary_or_tokenizer_is_rejected(tmp_path):
    made(tmp_path / "s", tokenizer="a" * 64)
    before = contents(tmp_path / "s")
    with pytest.raises(ValueError, match="store: expected a vocabulary of 9, got 8"):
        build_datastore(tmp_path / "s", TEXTS, vocabulary_size=9, add=True)
    with pytest.raises(ValueError, match="store: expected ids of the tokenizer bbb"):
        made(tmp_path / "s", tokenizer="b" * 64, add=True)
    assert contents(tmp_path / "s") == before
    assert made(tmp_path / "s", add=True).tokenizer == "a" * 64


def test_second_writer_is_rejected(tmp_path):
    made(tmp_path / "s")
    with FileLock(tmp_path / "s" / ".lock"), pytest.raises(ValueError, match="store: expected one without another writer"):  # fmt: skip
        made(tmp_path / "s", add=True)
    made(tmp_path / "s", add=True)


@pytest.mark.parametrize("fails_at", range(1, 6))
def test_full_disk_names_the_file_and_keeps_the_store(tmp_path, monkeypatch, fails_at):
    made(tmp_path / "s", [[1, 2, 3], [4, 5, 6]], shard_tokens=4)
    before, files = contents(tmp_path / "s"), {file.name for file in (tmp_path / "s").iterdir()}
    opened, calls = Path.open, 0

    def full(self, mode="r", *arguments, **options):
        nonlocal calls
        if "w" in mode and self.name.startswith(".specdec-"):
            calls += 1
            if calls == fails_at:
                raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return opened(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    texts = [[1, 2, 3], [7, 7, 7]]  # two shards of two files each, then the description
    with pytest.raises(OSError, match="No space left") as error:
        made(tmp_path / "s", texts, add=True)
    assert error.value.errno == errno.ENOSPC and str(tmp_path / "s") in error.value.filename
    assert contents(tmp_path / "s") == before
    assert {file.name for file in (tmp_path / "s").iterdir()} == files
    Datastore.open(tmp_path / "s")


def test_leftovers_of_a_killed_build_are_deleted(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from specdec.datastore import build\n"
        "build.Manifest.as_json = lambda self: os._exit(9)\n"
        "build.build_datastore(Path(sys.argv[1]), [[1, 2]], vocabulary_size=8)"
    )
    path = tmp_path / "s"
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(build.__file__).parents[2], check=False)  # fmt: skip
    assert done.returncode == 9 and list(path.glob("*.tokens"))
    with pytest.raises(ValueError, match="store: expected a folder that specdec datastore built"):
        Datastore.open(path)
    made(path)
    assert len(list(path.iterdir())) == 4


def test_error_names_the_truncated_or_changed_file(tmp_path):
    path = tmp_path / "s"
    (shard,) = made(path).shards
    for end in (".tokens", ".order"):
        file = path / f"{shard.id}{end}"
        whole = file.read_bytes()
        for changed, said in (
            (whole[:-1], f"expected {len(whole)} bytes in .*{end}, got {len(whole) - 1}"),
            (whole + b"x", f"got {len(whole) + 1}"),
            (
                whole[:3] + bytes([whole[3] ^ 1]) + whole[4:],
                f"{end} unchanged, got another checksum",
            ),
        ):
            file.write_bytes(changed)
            with pytest.raises(
                ValueError, match=f"store: {said}" if said.startswith("e") else said
            ):
                Datastore.open(path)
        file.unlink()
        with pytest.raises(ValueError, match="store: expected all files of its shards"):
            Datastore.open(path)
        file.write_bytes(whole)
    Datastore.open(path)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"format": "x"}, {"shards": 3}, {"shards": [{}]}, {"vocabulary_size": "8"}, {"more": 1},
        {"vocabulary_size": 0}, {"shards": []},
    ],
    ids=str,
)  # fmt: skip
def test_changed_manifest_is_rejected(tmp_path, change):
    path = tmp_path / "s"
    made(path)
    fields = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(fields | change))
    with pytest.raises(ValueError, match="store: expected"):
        Datastore.open(path)
    (path / "store.json").write_text("{")
    with pytest.raises(ValueError, match="store.json: expected a readable JSON file"):
        Datastore.open(path)


def test_manifest_cannot_refer_to_files_outside_the_folder(tmp_path):
    path = tmp_path / "s"
    (shard,) = made(path).shards
    text = (path / "store.json").read_text().replace(shard.id, f"../{shard.id}")
    (path / "store.json").write_text(text)
    with pytest.raises(ValueError, match="store: expected a whole store.json"):
        Datastore.open(path)
