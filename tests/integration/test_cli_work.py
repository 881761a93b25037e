"""Long commands: progress, resuming, full disks and damaged files."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from specdec import cli
from specdec.cli import compare
from specdec.host import progress
from specdec.host.whole_file import whole_file

QUESTIONS = Path(__file__).parents[1] / "data" / "questions.jsonl"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def trained(tiny_folder, tmp_path):
    """Arguments that train a small drafter in a moment, by a method and its options."""
    data = tmp_path / "data.jsonl"
    lines = [{"prompt_ids": [3 + i % 7, 4], "answer_ids": [5, 6, 7, 8 + i % 9]} for i in range(20)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def arguments(method):
        return (
            "train", *method.split(), data, "--out", tmp_path / "out", "--run", tmp_path / "run", "--features",
            tmp_path / "features", "--model", tiny_folder, "--epochs", 1, "--batch", 4, "--held-out", 2,
            "--draft-vocabulary", 0,
        )  # fmt: skip

    return arguments


@pytest.mark.parametrize(
    "method",
    [
        "redrafter",
        "medusa --own-head",
        "kangaroo",
        "kangaroo --adapter layer",
        "eagle3 --layers 1,2",
    ],
)
def test_train_reports_progress_and_resumes(trained, run, tmp_path, method):
    said = run(*trained(method)).err
    assert re.search(r"^reading 18/18$", said, re.M)
    assert re.search(r"^training \d+/\d+ loss ", said, re.M)
    assert "tokens_per_round" in said
    assert (tmp_path / "out" / "model.safetensors").is_file()
    again = run(*trained(method)).err
    assert "training" not in again.split(str(tmp_path))[0]  # all of it was done


def test_bench_reports_progress(tiny_folder, run):
    ask = (
        "bench",
        "--prompts",
        QUESTIONS,
        "--model",
        tiny_folder,
        "--limit",
        2,
        "--max-new-tokens",
        2,
    )
    said = run(*ask, "--methods", "plain,lookup").err.splitlines()
    assert said[0].startswith("runs 1/4 writing ")
    assert said[-1].startswith("runs 4/4 ")


def test_progress_to_a_file_is_one_line_per_interval(monkeypatch, capsys):
    now = iter([0.0, 4.0, 9.9, 10.0, 12.0, 25.0, 26.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.progress() as show:
        for done in range(6):
            show("working", done, 9, f"[{done}]")
        show("working", 9, 9, "")
    assert capsys.readouterr().err.splitlines() == [
        "working 0/9 [0]", "working 3/9 [3]", "working 5/9 [5]", "working 9/9"
    ]  # fmt: skip


def test_error_names_the_damaged_training_file(trained, run, refused, tmp_path):
    run(*trained("redrafter"))
    texts = (b"", b"\0", b"[1]", b"{\xff", b"[" * 100_000)
    halves = ("run/state.pt", "features/index.json", "features/hidden", "features/tokens")
    for name in (*halves, "data.jsonl"):
        path = tmp_path / name
        whole = path.read_bytes()
        half = [whole[: len(whole) // 2]] if name in halves else []
        for damaged in (*texts, *half):
            if path.suffix == "" and len(damaged) >= len(whole):
                continue  # features end where the index says
            path.write_bytes(damaged)
            line = refused(*trained("redrafter"))
            assert name in line or "data: expected more" in line, (name, damaged[:9], line)
            assert path.read_bytes() == damaged
        path.write_bytes(whole)
    run(*trained("redrafter"))


@pytest.fixture
def full_disk(monkeypatch):
    """Nothing more fits from the moment that it is called."""

    def fill():
        def no_space(self, *_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        for name in ("write_text", "write_bytes"):
            monkeypatch.setattr(Path, name, no_space)

    return fill


def test_disk_full_when_saving_bench_results_gives_one_error_line(
    tiny_folder, run, refused, tmp_path, monkeypatch, full_disk
):
    saved = tmp_path / "runs.json"
    saved.write_text("old")
    original = compare.run_benchmark

    def then_full(*arguments, **options):
        result = original(*arguments, **options)
        full_disk()
        return result

    monkeypatch.setattr(compare, "run_benchmark", then_full)
    ask = (
        "bench",
        "--prompts",
        QUESTIONS,
        "--model",
        tiny_folder,
        "--limit",
        1,
        "--max-new-tokens",
        1,
    )
    error = run(*ask, "--methods", "plain", "--json", saved, code=2).err.splitlines()[-1]
    assert error == f"specdec: {saved}: No space left on device"
    monkeypatch.undo()
    assert saved.read_text() == "old"
    assert list(tmp_path.iterdir()) == [saved]


@pytest.mark.parametrize("stage", ["features", "run", "out"])
def test_disk_full_during_training_gives_one_error_line(trained, run, tmp_path, monkeypatch, stage):
    original = whole_file

    def full(path):
        if path.parent.name == stage:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return original(path)

    with monkeypatch.context() as filled:
        for module in (
            "specdec.train.features",
            "specdec.train.loop",
            "specdec.checkpoints.tensors",
        ):
            filled.setattr(f"{module}.whole_file", full)
        error = run(*trained("redrafter"), code=2).err.splitlines()[-1]
    assert re.fullmatch(rf"specdec: {tmp_path}/{stage}/\S+: No space left on device", error)
    run(*trained("redrafter"))  # goes on


def test_interrupt_exits_with_130_and_prints_nothing(tiny_folder, run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("specdec.cli.loading.load_target", interrupted)
        said = run("generate", "w1", "--model", tiny_folder, code=130)
    assert said.out == said.err == ""


@pytest.mark.parametrize("arguments", [["--help"], ["chat", "--help"]])
def test_closed_stdout_pipe_prints_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "specdec.cli", *arguments], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
    )  # fmt: skip
    os.close(write)
    assert done.stderr == ""
    assert done.returncode != 2


def test_internal_errors_still_raise_a_traceback(tiny_folder, monkeypatch):
    def wrong(*_, **__):
        raise KeyError("ours")

    monkeypatch.setattr("specdec.cli.loading.load_target", wrong)
    monkeypatch.setattr(sys, "argv", ["specdec", "generate", "w1", "--model", tiny_folder])
    with pytest.raises(KeyError, match="ours"):
        cli.main()
