"""Part (a): are the kernels right on this GPU? Each op's tests, repeated launches, small launches under memcheck.

All of it runs at once, in processes of its own. So does what prepares other parts: `gpu_times.py --warm` compiles what will
be timed, `gpu_decoding.py --prepare` makes the model's folder and compiles what will write texts.
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
# Tests of no single op that say more on a GPU: files, what is run of them there, and in a dry run.
WHOLE = {
    "graphs": (["tests/kernels/test_cuda_graphs.py"], [], []),
    "host reads": (
        ["tests/integration/test_host_reads.py"],
        ["-m", "gpu"],
        ["-k", "what_does_not_wait"],
    ),
    "devices": (
        ["tests/integration/test_devices.py"],
        ["--device", "cuda"],
        ["-k", "plain and llama"],
    ),
}
# compute-sanitizer's exit code where it found something.
FOUND = 86
TAIL = 1500

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--decoding",
        nargs=argparse.REMAINDER,
        default=[],
        help="Options of `gpu_decoding.py --prepare`.",
    )
    options = run_options(parser)
    run: Run = options.run
    jobs: list[tuple[Callable[..., Row | list[Row]], tuple[Any, ...]]] = []
    if options.decoding:  # first, for converting a model takes a minute
        jobs += [(warm, (run, "decoding", "--prepare", *options.decoding))]
    jobs += [(run_tests, (run, op)) for op in (OPS_DRY if run.dry else OPS)]
    jobs += [(run_whole, (run, name)) for name in WHOLE]
    if run.dry:
        jobs += [(repeat, (run, OPS))]
    else:
        jobs += [(repeat, (run, [op])) for op in OPS]
        jobs += [(memcheck, (run, OPS))]
        jobs += [(warm, (run, "times", "--warm", op)) for op in OPS]
    with results_of(run, "tests") as results, ThreadPoolExecutor(workers()) as pool:
        results.note(planned=len(jobs), done=0)
        pending = [pool.submit(job, *arguments) for job, arguments in jobs]
        for number, done in enumerate(as_completed(pending), 1):
            found = done.result()
            for row in found if isinstance(found, list) else [found]:
                add(results, row)
            results.note(done=number)


def workers() -> int:
    return max(2, min(12, (os.cpu_count() or 2) * 3 // 4))


def add(results: Results, row: Row) -> None:
    results.add(**row)
    print(*(f"{name}={value}" for name, value in row.items() if name != "tail"), flush=True)


def run_tests(run: Run, op: str) -> Row:
    """Run an op's test files; it has passed where every test did, in time."""
    files = sorted((ROOT / "tests/kernels").glob(f"test_{op}*.py"))
    options = ["-k", SELECTED_DRY if run.dry else SELECTED]
    return {"kind": "tests", "op": op, **run_pytest(run, [*files, *options])}


def run_whole(run: Run, name: str) -> Row:
    """Run tests that no op is told by."""
    files, options, dry = WHOLE[name]
    return {
        "kind": "whole",
        "op": name,
        **run_pytest(run, [*files, *(dry if run.dry else options)]),
    }


def run_pytest(run: Run, words: list[Any]) -> Row:
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
            *words,
        ]
        if not run.dry:
            command.append("--all")
            if find_spec("xdist"):
                command += ["-n", "2"]  # compiling takes most of the time
        code, output = execute(run, command)
        counts = count(report) if report.exists() else {"passed": 0, "failed": []}
    passed = code == 0 and counts["passed"] > 0
    row = {"ok": passed, **counts}
    return row if passed else {**row, "ended": ended(code), "tail": output[-TAIL:]}


def count(report: Path) -> Row:
    tests = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [t for t in tests if t.find("failure") is not None or t.find("error") is not None]
    skipped = [t for t in tests if t.find("skipped") is not None]
    return {
        "passed": len(tests) - len(failed) - len(skipped),
        "skipped": len(skipped),
        "failed": [str(t.get("name")) for t in failed],
    }


def repeat(run: Run, ops: list[str]) -> Row:
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


def memcheck(run: Run, ops: list[str]) -> list[Row]:
    """Run small cases under compute-sanitizer, each tensor in an allocation of its own; where it finds something, op by op."""
    row = check_memory(run, ops)
    if row["ok"] is not False or len(ops) == 1:
        return [row]
    alone = [found for op in ops for found in memcheck(run, [op])]
    return alone if any(found["ok"] is False for found in alone) else [row]


def check_memory(run: Run, ops: list[str]) -> Row:
    row = {"kind": "memcheck", "op": ops[0] if len(ops) == 1 else "all"}
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {**row, "ok": None, "ended": "no compute-sanitizer here"}
    watch = [tool, "--tool", "memcheck", "--error-exitcode", FOUND]
    command = [*watch, sys.executable, BENCH / "gpu_repeats.py", *run.options(), "--small"]
    code, output = execute(run, [*command, "--op", *ops], PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    found = run.earlier(f"small_{'_'.join(ops)}")
    rows = found["rows"]
    # What the tool itself could not do is no finding.
    ok = {0: found["complete"] and not any("error" in r for r in rows), FOUND: False}.get(code)
    return {**row, "ok": ok, "cases": len(rows), "ended": ended(code), "tail": output[-TAIL:]}


def warm(run: Run, part: str, *options: str) -> Row:
    """Do beforehand what a later part would begin with; what it takes too long for is done there."""
    command = [sys.executable, BENCH / f"gpu_{part}.py", *run.options(), *options]
    code, output = execute(run, command)
    row = {
        "kind": "warm",
        "op": options[-1] if part == "times" else part,
        "ok": None,
        "ended": ended(code),
    }
    return {**row, "tail": output[-TAIL:]} if code else row


if __name__ == "__main__":
    main()
