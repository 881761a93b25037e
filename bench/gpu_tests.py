"""Part (a): are the kernels right on this GPU? Each op's tests, repeated launches, small launches under memcheck.

All of it runs at once, in processes of its own. So does `gpu_times.py --warm`, which compiles what will be timed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_cases import OPS
from gpu_run import ROOT, Results, Run, ended, execute, results_of, run_options

BENCH = Path(__file__).parent
# Compiling whole models says nothing of the GPU, and takes minutes.
SELECTED = "not compiles_whole"
SELECTED_DRY, OPS_DRY = "bad_arguments", ("accept_tree", "commit_kv")
# compute-sanitizer's exit code where it found something.
FOUND = 86
TAIL = 1500


def main() -> None:
    options = run_options(argparse.ArgumentParser(description=__doc__))
    run: Run = options.run
    jobs: list[tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]] = []
    jobs += [(run_tests, (run, op)) for op in (OPS_DRY if run.dry else OPS)]
    if run.dry:
        jobs += [(repeat, (run, OPS))]
    else:
        jobs += [(repeat, (run, [op])) for op in OPS]
        jobs += [(memcheck, (run,))]
        jobs += [(warm, (run, op)) for op in OPS]
    with results_of(run, "tests") as results, ThreadPoolExecutor(workers()) as pool:
        pending = [pool.submit(job, *arguments) for job, arguments in jobs]
        for done in as_completed(pending):
            add(results, done.result())


def workers() -> int:
    return max(2, min(12, (os.cpu_count() or 2) * 3 // 4))


def add(results: Results, row: dict[str, Any]) -> None:
    results.add(**row)
    print(*(f"{name}={value}" for name, value in row.items() if name != "tail"), flush=True)


def run_tests(run: Run, op: str) -> dict[str, Any]:
    """Run an op's test files; it has passed where every test did, in time."""
    files = sorted((ROOT / "tests/kernels").glob(f"test_{op}*.py"))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *files,
        ]
        command += ["-k", SELECTED_DRY if run.dry else SELECTED]
        if not run.dry and find_spec("xdist"):
            command += ["-n", "2"]  # compiling takes most of the time
        code, output = execute(run, command)
        counts = count(report) if report.exists() else {"passed": 0, "failed": []}
    passed = code == 0 and counts["passed"] > 0
    row = {"kind": "tests", "op": op, "ok": passed, **counts}
    return row if passed else {**row, "ended": ended(code), "tail": output[-TAIL:]}


def count(report: Path) -> dict[str, Any]:
    tests = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [t for t in tests if t.find("failure") is not None or t.find("error") is not None]
    skipped = [t for t in tests if t.find("skipped") is not None]
    return {
        "passed": len(tests) - len(failed) - len(skipped),
        "skipped": len(skipped),
        "failed": [str(t.get("name")) for t in failed],
    }


def repeat(run: Run, ops: list[str]) -> dict[str, Any]:
    """Repeat every case's launch; the cases' rows are in a file of their own."""
    code, output = execute(
        run, [sys.executable, BENCH / "gpu_repeats.py", *run.options(), "--op", *ops]
    )
    found = run.earlier(f"repeats_{'_'.join(ops)}")
    bad = [r["case"] for r in found["rows"] if r.get("differing", 0) or "error" in r]
    row = {
        "kind": "repeats",
        "op": "all" if run.dry else ops[0],
        "ok": found["complete"] and not bad,
    }
    row |= {"cases": len(found["rows"]), "bad": bad}
    return row if row["ok"] else {**row, "ended": ended(code), "tail": output[-TAIL:]}


def memcheck(run: Run) -> dict[str, Any]:
    """Run the small cases under compute-sanitizer, each tensor in an allocation of its own."""
    row = {"kind": "memcheck", "op": "all"}
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {**row, "ok": None, "ended": "no compute-sanitizer here"}
    watch = [tool, "--tool", "memcheck", "--error-exitcode", FOUND]
    command = [*watch, sys.executable, BENCH / "gpu_repeats.py", *run.options(), "--small"]
    code, output = execute(run, command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    rows = run.earlier("small")["rows"]
    # What the tool itself could not do is no finding.
    ok = {0: not any("error" in r for r in rows), FOUND: False}.get(code)
    return {**row, "ok": ok, "cases": len(rows), "ended": ended(code), "tail": output[-TAIL:]}


def warm(run: Run, op: str) -> dict[str, Any]:
    """Compile what part (b) will time; whatever it takes too long for is compiled there."""
    code, _ = execute(run, [sys.executable, BENCH / "gpu_times.py", *run.options(), "--warm", op])
    return {"kind": "warm", "op": op, "ok": None, "ended": ended(code)}


if __name__ == "__main__":
    main()
