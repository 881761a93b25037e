"""Wrong input of commands: one error line, exit code 2, and no changed files."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from checkpoint_parts import APPLE

QUESTIONS = Path(__file__).parents[1] / "data" / "questions.jsonl"


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"prompt_ids": [3, 4], "answer_ids": [5, 6, 7, 8]}\n' * 30)
    return path


NUMBERS = [
    *(("generate", "w1", name, value) for name, values in {
        "--max-new-tokens": ["0", "-1", "x", "1.5", "1e3"],
        "--max-nodes": ["0", "257", "-1", "9" * 30],
        "--threads": ["0", "-1", "9" * 30, "100000", "two"],
        "--temperature": ["nan", "inf", "-1", "-inf", "warm"],
        "--seed": ["-1", str(2**64), "9" * 5000, "x"],
    }.items() for value in values),
    *(("generate", "w1", "--temperature", "1", "--top-p", value) for value in ["0", "nan", "1.1", "inf", "-1"]),
    *(("bench", "--prompts", str(QUESTIONS), name, value)
      for name in ("--limit", "--per-category", "--turns", "--batch") for value in ["0", "-1", "x"]),
    *(("data", "--append", "x.db", name, value) for name, values in {
        "--tokens": ["0", "-1"], "--batch": ["0", "9" * 30], "--answer-tokens": ["0", "-3"], "--seed": ["-1", str(2**32)],
    }.items() for value in values),
]  # fmt: skip


TRAINING = [
    *((method, name, value) for method in ("redrafter", "medusa", "kangaroo", "eagle3") for name, values in {
        "--epochs": ["0", "-1"], "--batch": ["0"], "--learning-rate": ["0", "nan", "inf", "-1"], "--held-out": ["0"],
        "--seed": ["-1", "9" * 30], "--draft-vocabulary": ["-1"], "--exit-layers": ["1,x", "1.5", "²"],
        "--threads": ["0"],
    }.items() for value in values),
    *(("redrafter", name, value) for name, values in {
        "--exit-dim": ["0", "9" * 30], "--residual-blocks": ["-1", "9" * 30], "--length": ["0", "65"],
        "--beam-width": ["0", "65"], "--min-prob": ["nan", "-1", "2"], "--min-step-prob": ["nan", "inf"], "--labels": ["", "data"],
    }.items() for value in values),
    *(("eagle3", name, value) for name, values in {
        "--layers": ["x", "1;2"], "--intermediate-size": ["0"], "--depth": ["0", "17"], "--width": ["0", "17"],
    }.items() for value in values),
    *(("medusa", name, value) for name, values in {
        "--heads": ["0", "17"], "--blocks": ["-1"], "--head-weights": ["1", "1,x,1,1", "1,1,1,nan", "1,1,1,-1"],
    }.items() for value in values),
    *(("kangaroo", name, value) for name, values in {
        "--exit-layer": ["0", "-1"], "--kv-heads": ["0"], "--eta": ["nan", "inf", "-1"], "--gamma": ["0"], "--adapter": ["", "rnn"],
    }.items() for value in values),
]  # fmt: skip


def named(line, option):
    """Whether a message names an option, in our way or in typer's."""
    return option in line or line.startswith(f"specdec: {option[2:].replace('-', '_')}: ")


@pytest.fixture
def no_model(monkeypatch):
    """Nothing is loaded for what is wrong anyway."""
    monkeypatch.setattr("specdec.load.load_model", lambda *_, **__: pytest.fail("loaded"))


@pytest.mark.usefixtures("no_model")
def test_out_of_range_numbers_are_rejected_before_loading_the_model(refused, texts, tmp_path):
    folders = ("--out", tmp_path / "out", "--run", tmp_path / "run")
    lines = {arguments: refused(*arguments) for arguments in NUMBERS}
    lines |= {a: refused("train", a[0], texts, *folders, *a[1:]) for a in TRAINING}
    for arguments, line in lines.items():
        assert named(line, arguments[-2]), (arguments, line)
    assert list(tmp_path.iterdir()) == [texts]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("kind", ["null", "file", "folder", "nowhere", "proc", "circle"])
def test_unwritable_paths_are_rejected_before_loading_the_model(refused, texts, tmp_path, kind):
    for path, target in {"circle": "circle", "link": "/dev/full"}.items():
        (tmp_path / path).symlink_to(target)
    place = {
        "null": "/dev/null", "file": f"{texts}/x", "folder": str(tmp_path), "nowhere": "/proc/no/x", "proc": "/proc/x",
        "circle": str(tmp_path / "circle"),
    }[kind]  # fmt: skip
    ask = ("bench", "--prompts", QUESTIONS)
    assert refused(*ask, "--json", place).startswith("specdec: json: expected a file in an")
    line = refused("data", "--append", place)
    assert line.startswith("specdec: append: expected a file in an existing folder")
    if kind == "folder":
        place = str(texts)  # a file, where a folder is wanted
    assert refused("convert", APPLE, place).startswith("specdec: out: expected a ")
    good = {name: tmp_path / name for name in ("out", "run", "features")}
    for name in good:
        places = [x for n, p in (good | {name: place}).items() for x in (f"--{n}", p)]
        line = refused("train", "kangaroo", texts, *places)
        assert line.startswith(f"specdec: {name}: expected a folder with write access")
    assert {path.name for path in tmp_path.iterdir()} == {"texts.jsonl", "circle", "link"}


@pytest.mark.usefixtures("no_model")
def test_error_names_unknown_drafters_methods_and_missing_files(refused, texts, tmp_path):
    for drafter in (
        "",
        "+",
        "lookup+",
        "magic",
        str(texts),
        "/dev/null",
        "~nobody",
        "a\nb",
        "x" * 300,
    ):
        assert "drafter" in refused("generate", "w1", "--drafter", drafter) or len(drafter) == 300
    ask = ("bench", "--prompts", QUESTIONS)
    for names in ("", ",", "plain,", "plain,,lookup", "magic", " , "):
        assert refused(*ask, "--methods", names).startswith("specdec: methods: expected some of ")
    for place in ("no", tmp_path, "/dev/null", "/proc/self/mem"):
        assert "prompts: expected " in refused("bench", "--prompts", place)
        assert "prompts: expected " in refused(
            "data", "--append", tmp_path / "x", "--prompts", place
        )
    folders = ("--out", tmp_path / "out", "--run", tmp_path / "run")
    assert "data: expected" in refused("train", "redrafter", "no", *folders)


def test_prompts_that_are_empty_or_not_utf8_are_rejected(
    tiny_folder, refused, monkeypatch, tmp_path
):
    here = ("--model", tiny_folder, "--drafter", "plain")
    for text in ("w1 \udcff", "\ud800", "\udfff w1"):
        assert "prompt: expected text in UTF-8" in refused("generate", text, *here)
    for data in (b"w1 \xff", b"\xff\xfew\x001\x00", b"\xc3"):
        for command in (("generate", "-"), ("chat",)):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
            assert "prompt: expected text in UTF-8" in refused(*command, *here)
    for data in (b"", b"\n \n", b"\xef\xbb\xbf"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
        assert "prompt: expected some text, got none" in refused("generate", "-", *here)


def test_byte_order_mark_of_stdin_is_ignored(tiny_folder, run, monkeypatch):
    for data in (b"w5 w6", b"\xef\xbb\xbfw5 w6"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
        out = run("generate", "-", "--model", tiny_folder, "--max-new-tokens", 2).out
        assert out.startswith("w5 w6\n")


def test_extreme_temperatures_generate_text(tiny_folder, run):
    for temperature in ("1e-300", "1e-40", "1e300"):
        run(
            "generate",
            "w5",
            "--model",
            tiny_folder,
            "--max-new-tokens",
            3,
            "--temperature",
            temperature,
        )


def test_unknown_devices_are_rejected(tiny_folder, refused):
    for device in (
        "",
        "toaster",
        "cpu:-1",
        "cuda:9999",
        "meta",
        "xla",
        "hpu",
        "xpu",
        "opengl",
        "cuda:0:1",
        "\0",
    ):
        assert "device: expected one " in refused(
            "generate", "w1", "--model", tiny_folder, "--device", device
        )


def test_every_command_sets_the_number_of_threads(tiny_folder, run, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    for command in (["generate", "w1", "--max-new-tokens", 1], ["chat"], ["info"],
                    ["bench", "--prompts", QUESTIONS, "--limit", 1, "--max-new-tokens", 1]):  # fmt: skip
        assert f"{run(*command, '--model', tiny_folder, '--threads', 1)}"
    assert told == [1] * 4


def test_bench_stops_at_the_models_last_position(tiny_folder, run, tmp_path):
    """The library's methods would go on beyond them, and differ."""
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question_id": 1, "category": "a", "turns": ["w3 " * 150]}))
    run(
        "bench",
        "--prompts",
        path,
        "--model",
        tiny_folder,
        "--methods",
        "transformers",
        "--max-new-tokens",
        9**30,
    )


def test_tilde_is_expanded_in_option_values(tiny_folder, run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_folder, tmp_path / "model")
    ask = (
        "bench",
        "--prompts",
        QUESTIONS,
        "--limit",
        1,
        "--max-new-tokens",
        1,
        "--methods",
        "plain",
    )
    run(*ask, "--model", "~/model", "--json=~/runs.json")
    assert (tmp_path / "runs.json").is_file()
