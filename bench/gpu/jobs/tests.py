"""Part five: the kernels' own tests, with few examples each, and small launches under memcheck, which is told and judged by nobody.

It needs nothing but Python here: tests run in processes of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.gpu.run import TAIL, Job, Row, Run

# Compiling whole models says nothing of the GPU, and takes minutes.
SELECTED = "not compiles_with_fullgraph"
SELECTED_DRY, OP_DRY = "bad_argument", "commit_kv"
# Tests of no single op that say more on a GPU: files, and what is run of them there.
WHOLE = {
    "graphs": ["tests/kernels/test_cuda_graphs.py"],
    "host reads": ["tests/integration/test_host_reads.py", "-m", "gpu"],
    "devices": ["tests/integration/test_devices.py", "--device", "cuda"],
}
# compute-sanitizer's exit code where it found something.
FOUND = 86
OUTCOME = re.compile(r"(?:^|\s)(PASSED|FAILED|ERROR|SKIPPED)(?:\s|$)", re.MULTILINE)


def jobs(run: Run) -> list[Job]:
    """Take an op's test files, those of no op, or memcheck."""
    if run.group == "memcheck":
        return [Job("memcheck", partial(memcheck, run))]
    if run.group == "whole":
        return [Job(name, partial(tests, words, run.ends)) for name, words in WHOLE.items()]
    op = OP_DRY if run.dry else run.group
    return [Job(f"tests of {op}", partial(tests, words_of(op, run.dry, few=True), run.ends))]


def words_of(op: str, dry: bool, *, few: bool = False) -> list[str]:
    files = sorted(str(file) for file in (ROOT / "tests/kernels").glob(f"{op}/test_*.py"))
    plugin = ["-p", "bench.gpu.few_examples"] if few else []
    # Compiling takes most of the time.
    workers = ["-n", "2"] if find_spec("xdist") and not dry else []
    return [*plugin, *workers, *files, "-k", SELECTED_DRY if dry else SELECTED]


def tests(words: list[str], ends: float) -> Iterator[Row]:
    yield run_pytest(words, ends)


def run_tests(op: str, dry: bool, ends: float) -> Row:
    """Run an op's test files with all their examples; it has passed where every test did, in time."""
    return run_pytest(words_of(op, dry), ends)


def run_pytest(words: list[str], ends: float) -> Row:
    """Run tests until a point in time, and count them; what was not reached is unknown, and no fault."""
    if find_spec("pytest") is None:
        return {"ok": None, "passed": 0, "failed": [], "ended": "no pytest here"}
    command = [sys.executable, "-m", "pytest", "-v", "-rfE", "-p", "no:cacheprovider", *words]
    code, output = execute(command, ends)
    outcomes = OUTCOME.findall(output)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S.*)$", output, re.MULTILINE)
    if code is None:  # no summary then, but a line for each test
        failed = [line for line in output.splitlines() if re.search(r"\b(FAILED|ERROR)\b", line)]
    passed = outcomes.count("PASSED")
    ok = False if failed else None if code is None else code == 0 and passed > 0
    row = {"ok": ok, "passed": passed, "failed": failed, "ended": ended(code)}
    return row if ok else {**row, "tail": output[-TAIL:]}


def memcheck(run: Run) -> Iterator[Row]:
    """Run small cases under compute-sanitizer, each tensor in an allocation of its own."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        yield {"ok": None, "ended": "no compute-sanitizer here"}
        return
    # What the CUDA libraries ask for and are refused is no fault of a kernel.
    watch = [tool, "--tool", "memcheck", "--report-api-errors", "no"]
    watch += ["--error-exitcode", str(FOUND)]
    ops = sorted(file.stem for file in Path(ROOT, "kernels/specdec_kernels/testing/cases").glob("[a-z]*.py"))  # fmt: skip
    command = [*watch, sys.executable, "-m", "bench.gpu.jobs.correct", *ops]
    code, output = execute(command, run.ends, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    said = {0: "found nothing", FOUND: "found something"}.get(code, ended(code))
    yield {"ok": None, "ended": said, "tail": output[-TAIL:]}


def execute(command: list[str], ends: float, **environment: str) -> tuple[int | None, str]:
    """Run a command until a point in time; return its exit code, None if it was stopped, and what it printed."""
    # A file, for a pipe stays open as long as anything holds it that the command has left running.
    with tempfile.TemporaryFile() as output:
        process: subprocess.Popen[Any] = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code: int | None = process.wait(max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def ended(code: int | None) -> str:
    """Say how a command ended."""
    return "stopped at the time limit" if code is None else f"exit code {code}"
