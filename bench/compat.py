"""Run the compiler's checks and the core tests with other versions of the libraries than the pinned ones.

    PYTHONPATH=.compat/oldest python bench/compat.py oldest

The packages of an environment come first on PYTHONPATH. What came out is kept under the environment's name in
bench/results/compat.json; the exit status is 1 if anything failed or spilled.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import typer

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "bench/results/compat.json"
PACKAGES = ("torch", "triton", "transformers", "numpy")
# What depends on the versions: kernels in the interpreter, what the compiler makes of them, the decoder on tiny models.
# One process each, for two cores. What is plain torch in `tests/kernels` is the same in each environment.
CORE = (
    (
        "tests/kernels/test_*_kernel.py",
        "tests/kernels/test_aot.py",
        "tests/kernels/test_imports.py",
    ),
    ("tests/specdec",),
)


def compile_covering(folder: Path) -> dict[str, Any]:
    """Compile the covering cases for every GPU; faults are printed as they are found."""
    results = folder / "compiled.json"
    run_python("bench/aot.py", "--covering", "--json", results)
    rows = json.loads(results.read_text())
    where = ("op", "case", "arch", "kernel")
    return {
        "compiled": sum("error" not in row for row in rows),
        "failed": [{name: row[name] for name in where[:3]} for row in rows if "error" in row],
        "spilled": [
            {name: row[name] for name in (*where, "spills")} for row in rows if row.get("spills")
        ],
    }


def run_tests(folder: Path) -> dict[str, int]:
    """Run the core tests and count how they end."""
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor() as pool:
        parts = [(folder / f"{number}.xml", patterns) for number, patterns in enumerate(CORE)]
        for part in pool.map(run_part, *zip(*parts, strict=True)):
            counts.update(part)
    return dict(counts)


def run_part(results: Path, patterns: Iterable[str]) -> dict[str, int]:
    files = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    command = ["-m", "pytest", "-q", "-m", "not model", f"--junitxml={results}"]
    run_python(*command, *files, env={**os.environ, "OMP_NUM_THREADS": "1"})
    suite = next(ElementTree.parse(results).iter("testsuite"))
    total, errors, failures, skipped = (
        int(suite.attrib[name]) for name in ("tests", "errors", "failures", "skipped")
    )
    failed = errors + failures
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def run_python(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run in a process of its own: tests interpret kernels, which nothing compiles then."""
    subprocess.run([sys.executable, *command], cwd=ROOT, env=env, check=False)


def keep(name: str, entry: dict[str, Any]) -> None:
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    KEPT.write_text(json.dumps({**kept, name: entry}, indent=1) + "\n")


def describe(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in versions.items())


def main(name: str) -> None:
    versions = {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}}
    print(f"== {name}: {describe(versions)}", flush=True)
    with TemporaryDirectory() as folder:
        kernels, tests = compile_covering(Path(folder)), run_tests(Path(folder))
    keep(name, {"versions": versions, "kernels": kernels, "tests": tests})
    faults = [*kernels["failed"], *kernels["spilled"]]
    print(
        f"== {name}: {kernels['compiled']} kernels compiled, {summary(faults)}; {describe(tests)}"
    )
    raise typer.Exit(bool(faults or tests["failed"]))


def summary(faults: Sequence[object]) -> str:
    return f"{len(faults)} faults" if faults else "no faults"


if __name__ == "__main__":
    typer.run(main)
