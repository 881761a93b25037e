"""`make gpu` works before there is a GPU: all of it on small shapes, and what its figures are made of."""

import json
import os
import subprocess
import sys
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
        assert set(errors) <= {"flashinfer"}, errors
        for name, times in row["times"].items():
            assert times.get("distance") is None or times["distance"] < 1e-5, (row["case"], name)
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


def test_parts_of_a_gguf_file_are_joined_and_checked(tmp_path, monkeypatch):
    import hashlib

    import gpu_decoding

    from specdec.models import Embedded

    halves = [tmp_path / "a", tmp_path / "b"]
    for half, content in zip(halves, (b"first", b"second"), strict=True):
        half.write_bytes(content)
    monkeypatch.setattr(gpu_decoding, "_convert", lambda name, gguf, folder: gguf.read_bytes())
    for scratch in ("one", "two"):
        (tmp_path / scratch).mkdir()
    with pytest.raises(ValueError, match="model: expected a GGUF file with sha256"):
        gpu_decoding.model_folder(halves, None, tmp_path / "one")
    known = hashlib.sha256(b"firstsecond").hexdigest()
    model = Embedded((), known, 0, "none", ())
    monkeypatch.setattr(gpu_decoding, "EMBEDDED", {"in-parts": model})
    assert gpu_decoding.model_folder(halves, None, tmp_path / "two") == b"firstsecond"
    assert gpu_decoding.model_folder([tmp_path], None, tmp_path) == tmp_path


def test_a_part_that_takes_too_long_is_stopped_with_all_it_started(tmp_path):
    import time

    from gpu_run import Run, execute

    began = time.monotonic()
    run = Run("id", tmp_path, began + 2, True)
    code, output = execute(run, ["sh", "-c", "echo begun; sleep 60 & sleep 60"])
    assert code is None and output == "begun\n"
    assert time.monotonic() - began < 20


def test_least_work_is_the_formulas():
    from gpu_cases import take_apart
    from work import floor_microseconds, work_of

    from specdec_kernels.testing.cases import commit_kv, lm_head, tree_attention

    batch, nodes, heads, kv_heads, size, prefix = 2, 5, 4, 2, 16, 40
    alone, _, shared = tree_attention.SMALL
    tree = batch * (8 + nodes * 8 + nodes * 8 + 8)  # prefix_lens, ancestors, depth, cache_rows
    for case, slots, extra in ((alone, 2 * 45, 0), (shared, 2 * 45 - 20, batch * 16)):
        call = take_apart("tree_attention", case, "cpu")
        work = work_of(call, call.run("reference"))
        queries = batch * nodes * heads * size * 4
        assert work.bytes == 2 * slots * kv_heads * size * 4 + 2 * queries + tree + extra
        assert work.flops == 4 * batch * heads * nodes * (prefix + nodes) * size

    call = take_apart("lm_head", lm_head.SMALL[0], "cpu")
    work = work_of(call, call.run("reference"))
    assert work.bytes == 4 * (3 * 32 + 150 * 32) + 3 * 4 * (8 + 4) + 3 * 4
    assert work.flops == 2 * 3 * 150 * 32

    call = take_apart("commit_kv", commit_kv.SMALL[0], "cpu")
    work = work_of(call, call.run("reference"))
    indices = 8 * (32 + 1 + 1)
    assert work.bytes == 2 * 4 * (2 * 2 * 2 * 16 * 4) + indices  # four rows move, read and written

    assert floor_microseconds(3_000_000, 0, 1e12, 1e12) == (8.0, "launch")
    assert floor_microseconds(30_000_000, 10_000_000, 1e12, 1e12) == (30.0, "memory")
    assert floor_microseconds(1000, 90_000_000, 1e12, 1e12) == (90.0, "compute")


def test_what_fails_or_was_checked_in_another_run_gives_no_speedup(tmp_path):
    from gpu_run import Run
    from gpu_times import judge, passed_ops

    rows = [
        {"kind": "tests", "op": "a", "ok": True},
        {"kind": "tests", "op": "b", "ok": False},
        {"kind": "tests", "op": "c", "ok": True},
        {"kind": "tests", "op": "d", "ok": True},
        {"kind": "repeats", "op": "a", "ok": True},
        {"kind": "repeats", "op": "b", "ok": True},
        {"kind": "repeats", "op": "c", "ok": False},
    ]
    (tmp_path / "tests.json").write_text(json.dumps({"run": "now", "complete": True, "rows": rows}))
    assert passed_ops(Run("now", tmp_path, 0.0, True)) == {"a"}
    assert passed_ops(Run("then", tmp_path, 0.0, True)) == set()

    row = {
        "bytes": 2_000_000,
        "flops": 0,
        "dtype": "torch.float32",
        "times": {
            "kernel": {"median_microseconds": 25.0},
            "eager": {"median_microseconds": 50.0},
            "flex": {"error": "no"},
        },
    }
    limits = {"bytes_per_second": 1e11, "torch.float32": 1e12}
    figures = judge(row, limits, passed=True)
    assert figures["speedups"] == {"eager": 2.0}
    assert (figures["bound"], figures["over_floor"], figures["share_of_copy"]) == (
        "memory",
        1.25,
        0.8,
    )
    assert "speedups" not in judge(row, limits, passed=False)
