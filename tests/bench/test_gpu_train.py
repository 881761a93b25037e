"""A training in one call: text, two drafters, and what is known of them, in as much time as there is."""

import json
import sys
import time
import zipfile

import pytest
import torch

from tiny import save_chat_model


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train on a tiny model's own text; returns the exit code, what is known, and the names of what was trained."""
    from bench.gpu import train as gpu_train
    from specdec.train import validate

    # The machine that this is for does not have what they need.
    for name in ("duplicates", "supply"):
        monkeypatch.setitem(sys.modules, f"specdec.selftext.{name}", None)
    folder, out = tmp_path / "model", tmp_path / "out"
    save_chat_model(folder)
    sizes = {
        "WRITTEN": 0.0,
        "HELD_OUT": 2,
        "PROBED": 6,
        "MAX_EPOCHS": {"redrafter": 1, "kangaroo": 1},
    }
    for name, value in sizes.items():
        monkeypatch.setattr(gpu_train, name, value)
    monkeypatch.setattr(gpu_train, "batch_of", lambda target, method: {"redrafter": 64, "kangaroo": 3}[method])  # fmt: skip
    monkeypatch.setattr(validate, "NEW_TOKENS", 4)

    def train():
        monkeypatch.setattr(gpu_train, "BEGAN", time.monotonic())
        words = ["--device", "cpu", "--rows", "12", "--answer-tokens", "8", "--model", str(folder)]
        monkeypatch.setattr(sys, "argv", ["train", *words, "--out", str(out)])
        code = gpu_train.main()
        files = zipfile.ZipFile(out / "drafters.zip").namelist()
        return code, json.loads((out / "training.json").read_text()), files

    return train


@pytest.mark.slow
def test_one_call_generates_text_and_trains_both_drafters(train, tmp_path):
    from specdec import load_target
    from specdec.drafters import load_drafter

    code, known, files = train()
    assert code == 0, known
    data = known["data"]
    assert data["answer_tokens"] > 0 and data["conversations"] >= 12 and data["tokens_per_second"] > 0  # fmt: skip
    for method in ("redrafter", "kangaroo"):
        report = known[method]
        assert report["validation"]["tokens_per_round"] >= 1
        assert {"loss", "right_1"} <= report["log"][0].keys()
        assert report["shipped"] is None  # none is for this model
        assert f"{method}/model.safetensors" in files
    assert not known["measured"]
    zipfile.ZipFile(tmp_path / "out/drafters.zip").extractall(tmp_path / "drafters")
    target = load_target(str(tmp_path / "model"), dtype=torch.bfloat16)
    for method in ("redrafter", "kangaroo"):
        load_drafter(tmp_path / "drafters" / method, target)


def test_failed_training_does_not_affect_the_other_drafter(train, monkeypatch):
    from bench.gpu import train as gpu_train

    config_of = gpu_train.config_of

    def broken(target, method):
        if method == "redrafter":
            raise RuntimeError("no such shape")
        return config_of(target, method)

    monkeypatch.setattr(gpu_train, "config_of", broken)
    code, known, files = train()
    assert code == 1
    assert known["redrafter"]["error"] == "RuntimeError: no such shape"
    assert known["kangaroo"]["validation"] and "kangaroo/model.safetensors" in files


def test_out_of_memory_halves_the_rows_and_keeps_finished_texts(tmp_path, monkeypatch):
    from bench.gpu import self_text
    from bench.gpu import train as gpu_train
    from specdec import load_target
    from specdec.selftext import writer
    from specdec.selftext.conversation import read_records
    from specdec.selftext.record import Record

    save_chat_model(tmp_path / "model")
    target = load_target(str(tmp_path / "model"))
    tried = []

    class Writer:
        def __init__(self, target, *, batch, answer_tokens, seed):
            self.batch = batch

        def write(self, numbers):
            for number in numbers:
                tried.append((number, self.batch))
                if number and self.batch > 2:
                    raise torch.OutOfMemoryError
                record = Record(number, 0, "free", 0.0)
                record.add("x", [1], [2, 3], "y", 0)
                yield [record]

    monkeypatch.setattr(writer, "SelfWriter", Writer)
    progress = gpu_train.Progress(tmp_path, {})
    found = self_text.write_text(target, tmp_path / "text", 8, 4, 0.0, progress)
    assert tried == [(0, 8), (1, 8), (1, 4), (1, 2)]
    assert (found["rows"], found["answer_tokens"], found["different_tokens"]) == (2, 4, 2)
    assert [record.number for record in read_records(tmp_path / "text")] == [0, 1]
