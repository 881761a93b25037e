"""A GPU run works before there is a GPU: all of it on small shapes, and whatever goes wrong in a part stays in that part."""

import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def temporary_files_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # what a run that is killed leaves behind


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    from tiny import save_chat_model

    folder = tmp_path_factory.mktemp("model")
    save_chat_model(folder)
    return folder


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory, tiny_folder):
    """One dry second call."""
    folder = tmp_path_factory.mktemp("out")
    options = ("--dry", "--seconds", "1e6", "--out", str(folder), "--model", str(tiny_folder))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.gpu", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done, json.loads((folder / "gpu.json").read_text()), folder


@pytest.mark.slow
def test_dry_run_runs_every_job_without_measuring(dry_run):
    from bench.gpu.plan import parts_of
    from bench.report.gpu.page import gpu_page
    from bench.report.gpu.tables import NOT_MEASURED

    done, content, folder = dry_run
    assert done.returncode == 0, done.stdout + done.stderr
    parts = [part.name for part in parts_of(first=False, dry=True, model=True)]
    assert list(dict.fromkeys(row["part"] for row in content["rows"])) == parts
    assert not [row for row in content["rows"] if "error" in row or "unfinished" in row]
    begun = {(row["part"], row["case"]) for row in content["rows"]}
    assert {(part, case) for part in parts for case in content["planned"][part]} == begun
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert gpu_page(folder) == NOT_MEASURED and not content["measured"]
    assert "dry run, nothing is measured" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["gpu.json"]


@pytest.mark.slow
def test_dry_run_fills_every_table(dry_run):
    from bench.ops.cases import OPS
    from bench.report.gpu.figures import gates_of, rows_of, timed_rows
    from bench.report.gpu.page import TABLES, part_table

    _, content, _ = dry_run
    assert {case.partition(" ")[0] for case, ok in gates_of(content).items() if ok} == set(OPS)
    for row in timed_rows(content):
        assert row["gate"] and row["times"]["kernel"]["samples_microseconds"] and row["speedups"]
        assert all(times.get("distance", 0.0) < 1e-5 for times in row["times"].values()), row
    rounds = rows_of(content, "rounds")
    assert {r["method"]: r["tokens_per_round"] for r in rounds if r["kind"] == "texts"} == {"plain": 1.0, "oracle 2.5": 2.2}  # fmt: skip
    texts = [row for row in rows_of(content, "texts") if row["kind"] == "text"]
    assert [row["method"] for row in texts] == ["plain", "transformers", "lookup"]
    assert all(row["identical"] for row in texts) and {row["question"] for row in texts}
    assert all(row["gain"] > 0 and len(row["tried"]) > 1 for row in rows_of(content, "sweep"))
    assert all(row["passed"] for row in rows_of(content, "tests"))
    for part in TABLES.keys() - {"first"}:
        assert len(part_table(part, content).splitlines()) >= 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_reported(tmp_path, monkeypatch, capsys):
    from bench.gpu import __main__ as gpu

    (first,) = gpu.parts_of(first=True, dry=False, model=False)
    one = first._replace(groups=first.groups[-1:])  # of many processes that would all say so
    monkeypatch.setattr(gpu, "parts_of", lambda *options: [one])
    monkeypatch.setattr(gpu, "BEGAN", time.monotonic())
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)  # this process stays as it is
    monkeypatch.setattr(sys, "argv", ["gpu", "--first", "--out", str(tmp_path)])
    assert gpu.main() == 2
    assert "expected a CUDA device, got none" in capsys.readouterr().out


def test_slow_imports_happen_after_the_clock_starts():
    code = "import bench.gpu.__main__, sys; print({'torch', 'numpy', 'triton', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_parts_run_in_order_and_reserve_time_for_the_end():
    from bench.gpu.plan import OPS, parts_of

    for dry in (True, False):
        ends = [part.until for part in parts_of(first=False, dry=dry, model=True)]
        assert ends == sorted(ends) and ends[0] < 0.2 and ends[-1] < 0.985
    correct = parts_of(first=False, dry=False, model=True)[0]
    assert {name.partition(" ")[0] for _, name in correct.groups} == set(OPS)
    (first,) = parts_of(first=True, dry=False, model=True)
    assert first.groups == correct.groups


PARTS = """
import os, signal, sys, time
from types import SimpleNamespace
from bench.gpu.run import Job

class Cuda:
    broken = False

    def is_available():
        return True

    def empty_cache():
        pass

    def synchronize():
        if Cuda.broken:
            raise RuntimeError("an illegal memory access was encountered")

if "GPU" in os.environ:
    sys.modules["torch"] = SimpleNamespace(cuda=Cuda)

def breaks():
    yield from rows(1)
    Cuda.broken = True

def rows(*values):
    for value in values:
        yield {"op": "op", "ok": True, "value": value}

def many():
    for value in range(400):
        time.sleep(0.01)
        yield {"op": "op", "ok": True, "value": value}

def broken():
    yield from rows(1)
    raise ValueError("wrong\\nin two lines")

def killed():
    yield from rows(1)
    os.kill(os.getpid(), signal.SIGKILL)

def hangs():
    yield from rows(1)
    time.sleep(9999)

def missing():
    import no_such_package
    yield {}

WAYS = {"good": lambda: rows(1), "many": many, "broken": broken, "killed": killed, "hangs": hangs, "missing": missing, "breaks": breaks,
        "last": lambda: rows(1), "where": lambda: rows(os.getpid()), "there": lambda: rows(os.getpid())}

def jobs(run):
    if run.group == "no-import":
        import no_such_package
    return [Job(f"op {name}", WAYS[name]) for name in run.group.split()]
"""


def make_jobs(folder):
    (folder / "made_up").mkdir()
    (folder / "made_up/jobs.py").write_text(PARTS)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run parts whose jobs are made up; returns what the record has and what was printed."""
    from bench.gpu import __main__ as gpu
    from bench.gpu.plan import Part

    make_jobs(tmp_path)
    folder = tmp_path / "out"

    def run(*groups, seconds=1e6, until=0.9, longest=1e6, gpu_there=False):
        parts = [
            Part(
                "correct", until, longest, [("jobs", group) for group in groups], package="made_up"
            )
        ]
        parts += [Part("first", 1.0, longest, [("jobs", "last")], package="made_up")]
        head = {"measured": False, "date": "now", "machine": gpu.machine(dry=True)}
        record = gpu.Record(folder, head)
        paths = os.pathsep.join([str(tmp_path), *gpu.PATHS])
        there = gpu.run_parts(
            parts, record, began=time.monotonic(), seconds=seconds, options=[] if gpu_there else ["--dry"],
            environment={**os.environ, "PYTHONPATH": paths, **({"GPU": "1"} if gpu_there else {})}, missing={},
        )  # fmt: skip
        assert there
        return record.content, capsys.readouterr().out

    return run


def test_failed_job_or_missing_package_does_not_stop_other_jobs(run):
    content, told = run("good broken missing last")
    assert json.loads(json.dumps(content)) == content
    errors = {row["case"]: row["error"] for row in content["rows"] if "error" in row}
    assert errors == {
        "op broken": "ValueError: wrong",
        "op missing": "ModuleNotFoundError: No module named 'no_such_package'",
    }
    assert all("Traceback" in row["tail"] for row in content["rows"] if "error" in row)
    assert "| op | 2 | 2 | 0 | broken (see below); missing (see below) |" in told
    assert content["rows"][-1]["part"] == "first"


def test_crashed_process_restarts_after_the_job_that_crashed_it(run):
    content, told = run("good killed last", "good killed last")
    values = [row["case"] for row in content["rows"] if row.get("ok")]
    assert values == 2 * ["op good", "op killed", "op last"] + ["op last"]
    died = [row["error"] for row in content["rows"] if "error" in row]
    assert died == 2 * ["died with exit code -9"]
    assert told.count("- op killed: died with exit code -9") == 2


def test_broken_device_gets_a_new_process(run):
    content, _ = run("where there breaks last", "where breaks there", gpu_there=True)
    assert not [row for row in content["rows"] if "error" in row]
    one, two, _, _, three, _, four, _ = (row["value"] for row in content["rows"])
    assert one == two and three != four


def test_timed_out_job_is_stopped_and_the_next_ones_run(run):
    longest, done = 1.0, []
    while done.count("op last") < 2:  # a slow machine needs longer
        longest *= 2
        content, _ = run("hangs last", longest=longest)
        done = [row.get("error", row["case"]) for row in content["rows"]]
    assert done == ["op hangs", f"stopped after {longest:g} s", "op last", "op last"]


def test_jobs_without_time_are_unknown_and_not_failed(run):
    from bench.report.gpu.page import summary

    seconds, unfinished = 30.0, []
    while "op hangs" not in unfinished:  # a slow machine needs longer
        seconds *= 2
        content, told = run("good hangs last", seconds=seconds, until=0.15)
        unfinished = [row["case"] for row in content["rows"] if "unfinished" in row]
    assert unfinished == ["op hangs"]
    assert "| op | 1 | 0 | 2 |  |" in told and "1 of 3 cases had no time." in told
    assert content["rows"][-1]["part"] == "first"
    assert summary(content)[1]


def test_import_error_is_reported_and_other_jobs_run(run):
    content, told = run("no-import", "good")
    (error,) = (row for row in content["rows"] if "error" in row)
    assert error["case"] == "no-import" and "No module named 'no_such_package'" in error["tail"]
    assert [row["case"] for row in content["rows"] if row.get("ok")] == ["op good", "op last"]
    assert "- no-import: died with exit code 1" in told


def test_full_disk_loses_only_the_record(run, monkeypatch):
    def no_space(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", no_space)
    content, told = run("good last")
    assert len(content["rows"]) == 3
    assert told.count("gpu.json: not written: [Errno 28] No space left on device") == 1
    assert "| op | 2 | 0 | 0 |  |" in told


@pytest.mark.parametrize("after", [0.3, 1.1, 1.9])
def test_killed_run_leaves_a_readable_record_and_no_processes(tmp_path, after):
    from bench.report.gpu.page import gpu_page, part_table

    make_jobs(tmp_path)
    code = f"""
import os, time
from bench.gpu import __main__ as gpu, parts
from bench.gpu.plan import Part
parts.WRITE_EVERY_SECONDS = 0.0
paths = os.pathsep.join([{str(tmp_path)!r}, *gpu.PATHS])
record = gpu.Record(gpu.Path({str(tmp_path)!r}), {{"measured": True, "date": "now", "machine": gpu.machine(dry=True)}})
record.write()
print("begun", flush=True)
gpu.run_parts([Part("correct", 0.9, 60, [("jobs", "many hangs")], package="made_up")], record, began=time.monotonic(), seconds=600,
              options=["--dry"], environment={{**os.environ, "PYTHONPATH": paths}}, missing={{}})
"""
    command = [sys.executable, "-c", code]
    outer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert outer.stdout.readline() == "begun\n"
    time.sleep(after)
    inner = children_of(outer.pid)
    outer.send_signal(signal.SIGKILL)
    outer.wait()
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert "machine" in gpu_page(tmp_path) and part_table("correct", content)
    assert all(map(ends, inner))


def children_of(process):
    ids = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(identity) for identity in ids]


def ends(process):
    """Wait until a process ends, as one does soon after it is killed."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    select.select([descriptor], [], [])
    os.close(descriptor)
    return True
