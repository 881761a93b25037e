"""`make gpu` works before there is a GPU: all of it on small shapes, stopped in time, and it tells what went wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"


@pytest.fixture(autouse=True)
def bench_on_the_path(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # dry runs leave their results there


def run_gpu(*options):
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCH / "gpu.py"), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_dry_run_does_everything_and_measures_nothing():
    done = run_gpu("--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path(done.stdout.split("results: ")[1].partition(",")[0])
    contents = {part: json.loads((folder / f"{part}.json").read_text()) for part in ("tests", "times", "sweep")}  # fmt: skip
    for content in contents.values():
        assert not content["measured"] and content["complete"] and content["rows"]
        assert content["versions"]["torch"] == torch.__version__
    assert all(row["ok"] for row in contents["tests"]["rows"])
    for row in contents["times"]["rows"]:
        assert row["times"]["kernel"]["samples_microseconds"], row
        # Only where the op's tests ran in this very run.
        assert ("speedups" in row) == (row["op"] in ("accept_tree", "commit_kv"))
        errors = {name: t["error"] for name, t in row["times"].items() if "error" in t}
        assert not errors
        for name, times in row["times"].items():
            assert times.get("distance", 0.0) < 1e-5, (row["case"], name)
    for row in contents["sweep"]["rows"]:
        assert row["gain"] > 0 and len(row["tried"]) > 1 and "error" not in row

    from report_gpu import NOT_MEASURED, gpu_page, report

    assert gpu_page(folder) == NOT_MEASURED
    assert report(folder)["decoding"].startswith(NOT_MEASURED)
    assert "dry run, nothing here is measured" in done.stdout


@pytest.mark.slow
@pytest.mark.model
def test_decoding_runs_on_a_given_model():
    from specdec.models import embedded_model_path

    done = run_gpu("--dry", "--parts", "decoding", "--model", str(embedded_model_path()))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path(done.stdout.split("results: ")[1].partition(",")[0])
    content = json.loads((folder / "decoding.json").read_text())
    assert [row["method"] for row in content["rows"]] == ["plain", "lookup"]
    assert all(row["identical"] == row["answers"] == 1 for row in content["rows"])
    assert content["device_stages"]["lookup"]["verify"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = run_gpu()
    assert done.returncode == 2
    assert "expected a CUDA device, got none" in done.stdout


def test_every_part_has_its_time_and_all_of_it_is_given():
    import gpu

    assert gpu.schedule(list(gpu.BOXES))["decoding"] == gpu.SECONDS < 600
    alone = gpu.schedule(["tests", "times", "sweep"])
    assert alone["tests"] == gpu.BOXES["tests"]
    assert alone["sweep"] - alone["times"] == gpu.BOXES["sweep"]
    assert alone["sweep"] == gpu.SECONDS
    assert gpu.schedule(["tests"]) == {"tests": gpu.SECONDS}


def test_parts_of_a_gguf_file_are_joined_checked_and_converted_once(tmp_path, monkeypatch):
    import hashlib

    import gpu_decoding

    from specdec.embedded import Embedded

    halves = [tmp_path / "a", tmp_path / "b"]
    for half, content in zip(halves, (b"first", b"second"), strict=True):
        half.write_bytes(content)

    def convert(name, gguf, folder):
        folder.mkdir()
        (folder / name).write_bytes(gguf.read_bytes())
        return folder

    monkeypatch.setattr(gpu_decoding, "_convert", convert)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(ValueError, match="model: expected a GGUF file with sha256"):
        gpu_decoding.model_folder(halves, None, scratch)
    known = hashlib.sha256(b"firstsecond").hexdigest()
    model = Embedded((), known, 0, "none", ())
    monkeypatch.setattr(gpu_decoding, "EMBEDDED", {"in-parts": model})
    folder = gpu_decoding.model_folder(halves, None, scratch)
    assert (folder / "in-parts").read_bytes() == b"firstsecond"
    monkeypatch.setattr(gpu_decoding, "_convert", None)
    assert gpu_decoding.model_folder(halves, None, scratch) == folder
    assert list(scratch.iterdir()) == [folder]
    assert gpu_decoding.model_folder([tmp_path], None, tmp_path) == tmp_path


def test_device_time_belongs_to_the_stage_it_lies_in():
    from types import SimpleNamespace

    from gpu_decoding import seconds_per_stage
    from torch.autograd import DeviceType

    def event(name, start, end, device=DeviceType.CUDA, annotation=False):
        time_range = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
        return SimpleNamespace(
            name=name, device_type=device, time_range=time_range, is_user_annotation=annotation
        )

    def marks(stage, start, end):  # the second as the device saw it
        yield event(f"stage {stage}", start, end, DeviceType.CPU, True)
        yield event(f"stage {stage}", start + 1, end - 1, annotation=True)

    events = [
        *marks("draft", 0, 100), *marks("verify", 100, 300), *marks("draft", 310, 400),
        event("kernel", 10, 20), event("kernel", 30, 50), event("cudaLaunchKernel", 5, 9, DeviceType.CPU),
        event("kernel", 110, 200), event("kernel", 303, 309), event("kernel", 320, 330),
    ]  # fmt: skip
    assert seconds_per_stage(events, DeviceType.CUDA) == {
        "draft": pytest.approx(40e-6),
        "verify": pytest.approx(90e-6),
    }


def test_a_model_is_warmed_for_short_middling_and_long_prompts():
    from gpu_decoding import NEW, warm
    from gpu_run import Run

    written = []

    class Runner:
        def write(self, method, ids, most):
            written.append((method, len(ids), most))

    from specdec.evaluate.benchmark import Prompt

    prompts = [Prompt(None, 0, [1] * size, None) for size in (30, 7, 90, 50, 8)]
    warm(Run("id", Path(), float("inf"), False), Runner(), ["plain", "lookup"], prompts)
    assert written == [(m, size, NEW) for size in (7, 30, 90) for m in ("plain", "lookup")]


def processes_within(folder, many=1):
    """Wait for the files in which nested commands leave their ids."""
    for _ in range(100):
        ids = [int(f.read_text()) for f in folder.glob("*.pid") if f.read_text().strip()]
        if len(ids) == many:
            return ids
        time.sleep(0.1)
    raise AssertionError("expected nested commands to begin")


def ends(process):
    """Tell whether a process ends, as one does soon after it is killed, whether or not anyone has asked how."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


NESTED = """
import sys, time
from pathlib import Path
from gpu_run import Run, execute
run = Run("id", Path(), time.monotonic() + float(sys.argv[2]), True)
print(execute(run, ["sh", "-c", f"echo $$ > {sys.argv[1]}/own.pid; sleep 60 & echo $! > {sys.argv[1]}/child.pid; wait"])[0])
"""


@pytest.mark.parametrize("inner", [600, 2], ids=["by-the-outer-time", "by-its-own-time"])
def test_a_part_that_takes_too_long_is_stopped_with_all_it_started(tmp_path, inner):
    from gpu_run import Run, execute

    began = time.monotonic()
    run = Run("id", tmp_path, began + (6 if inner == 600 else 60), True)
    command = [sys.executable, "-c", NESTED, tmp_path, inner]
    code, output = execute(run, command, group=True, PYTHONPATH=str(BENCH))
    assert (code, output) == ((None, "") if inner == 600 else (0, "None\n"))
    assert time.monotonic() - began < 30
    assert all(map(ends, processes_within(tmp_path, 2)))


def test_a_command_that_is_stopped_from_outside_leaves_nothing(tmp_path):
    code = """
import signal, sys, time
from pathlib import Path
from gpu_run import Run, execute
signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
run = Run("id", Path(), time.monotonic() + 600, True)
execute(run, ["sh", "-c", f"echo $$ > {sys.argv[1]}/own.pid; sleep 60"], group=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(BENCH)}
    outer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    (inner,) = processes_within(tmp_path)
    outer.terminate()
    assert outer.wait(20) == 1
    assert ends(inner)


def test_every_process_of_a_part_has_the_same_end(tmp_path, monkeypatch):
    import argparse

    from gpu_run import Run, run_options

    run = Run("id", tmp_path, 12345.678901, False)
    monkeypatch.setattr(sys, "argv", ["part", *run.options()])
    assert run_options(argparse.ArgumentParser()).run == run


def test_what_fails_is_told_and_what_had_no_time_is_none():
    from gpu import faults
    from report_gpu import progress

    def tests(ok, complete=True):
        return {"complete": complete, "rows": [{"kind": "repeats", "op": "a", "ok": ok}]}

    assert faults("tests", 0, tests(True)) == faults("tests", 0, tests(None)) == []
    assert faults("tests", 0, tests(False)) == ["repeats a"]
    assert faults("tests", 0, tests(True, complete=False)) == ["not complete"]
    timed = {"complete": False, "planned": 3, "rows": [{"op": "a", "case": "B1", "times": {}}]}
    assert faults("times", 0, timed) == []
    assert progress(timed) == "1 of 3 cases"
    assert faults("times", None, timed) == ["stopped at the time limit"]
    assert faults("sweep", 0, {"rows": [{"op": "a", "case": "B1", "error": "no"}]}) == ["a B1"]
    assert faults("sweep", 0, {"rows": []}) == ["no results"]
    texts = [{"method": "plain", "lossless": True}, {"method": "lookup", "lossless": False}]
    assert faults("decoding", 0, {"rows": texts}) == ["lookup"]


def test_a_finding_of_memcheck_is_told_by_op(monkeypatch, tmp_path):
    import gpu_tests
    from gpu_run import Results, Run

    run = Run("id", tmp_path, float("inf"), True)
    asked = []

    def execute(run, command, **environment):
        ops = command[command.index("--op") + 1 :]
        asked.append(ops)
        results = Results(run, f"small_{'_'.join(ops)}")
        results.add(op=ops[0], case="B1")
        results.note(complete=True)
        return (gpu_tests.FOUND if bad & {*ops} else 0), "said"

    monkeypatch.setattr(gpu_tests, "execute", execute)
    monkeypatch.setattr(gpu_tests.shutil, "which", lambda tool: tool)
    bad = set()
    (row,) = gpu_tests.memcheck(run, ["a", "b"])
    assert (row["op"], row["ok"], len(asked)) == ("all", True, 1)
    bad = {"b"}
    rows = gpu_tests.memcheck(run, ["a", "b"])
    assert [(row["op"], row["ok"]) for row in rows] == [("a", True), ("b", False)]
