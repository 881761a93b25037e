"""Run the compiler's checks and the core tests with other versions of the libraries than the pinned ones.

    PYTHONPATH=.compat/oldest python -m bench.releases.compat oldest

The packages of an environment come first on PYTHONPATH. What came out is kept under the environment's name in
bench/results/compat.json, with each package that is another than constraints.txt names; the exit status is 1 if anything failed or
spilled.
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
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from xml.etree import ElementTree

import typer
from packaging.requirements import Requirement

from bench import ROOT

KEPT = ROOT / "bench/results/compat.json"
PACKAGES = ("torch", "triton", "transformers", "numpy")
# What depends on the versions: kernels in the interpreter, what the compiler makes of them, the decoder on tiny models, and what
# README.md tells people to run. One process each. What is plain torch in `tests/kernels` is the same in each environment.
CORE = (
    (
        "tests/kernels/*/test_*_kernel.py",
        "tests/kernels/*/test_*_op.py",
        "tests/kernels/test_aot.py",
        "tests/kernels/test_imports.py",
    ),
    ("tests/specdec",),
    ("tests/integration/test_cli.py", "tests/test_docs.py"),
)


def compile_covering(folder: Path) -> dict[str, Any]:
    """Compile the covering cases for every GPU; faults are printed as they are found."""
    results = folder / "compiled.json"
    run_python("-m", "bench.counted.aot", "--covering", "--json", results)
    rows = json.loads(results.read_text())
    where = ("op", "case", "arch", "kernel")
    return {
        "compiled": sum("error" not in row for row in rows),
        "failed": [{name: row[name] for name in where[:3]} for row in rows if "error" in row],
        "spilled": [
            {name: row[name] for name in (*where, "spills")} for row in rows if row.get("spills")
        ],
    }


def run_tests(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Run the core tests; count how they end, and name those that failed."""
    counts: Counter[str] = Counter()
    broken = []
    with ThreadPoolExecutor(2) as pool:
        parts = [(folder / f"{number}.xml", patterns) for number, patterns in enumerate(CORE)]
        for found, failed in pool.map(run_part, *zip(*parts, strict=True)):
            counts.update(found)
            broken += failed
    return dict(counts), broken


def run_part(results: Path, patterns: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    files = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    command = ["-m", "pytest", "-q", "-m", "not model", f"--junitxml={results}"]
    run_python(*command, *files, env={**os.environ, "OMP_NUM_THREADS": "1"})
    suite = next(ElementTree.parse(results).iter("testsuite"))
    total, errors, failures, skipped = (
        int(suite.attrib[name]) for name in ("tests", "errors", "failures", "skipped")
    )
    failed = errors + failures
    counts = {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}
    return counts, [
        f"{case.attrib['classname']}::{case.attrib['name']}: {fault.attrib.get('message', '').splitlines()[0][:200]}"
        for case in suite.iter("testcase")
        for fault in case
        if fault.tag in ("error", "failure")
    ]


def unlike_pins() -> dict[str, str]:
    """Return the installed versions that differ from constraints.txt."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            with suppress(PackageNotFoundError):
                installed = version(pin.name)
                if (pin.marker is None or pin.marker.evaluate()) and installed not in pin.specifier:
                    found[pin.name] = installed
    return found


def run_python(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run in a process of its own: tests interpret kernels, which nothing compiles then."""
    subprocess.run([sys.executable, *command], cwd=ROOT, env=env, check=False)


def keep(name: str, entry: dict[str, Any]) -> None:
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    KEPT.write_text(json.dumps({**kept, name: entry}, indent=1) + "\n")


def describe(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in versions.items())


def main(
    name: Annotated[
        str, typer.Argument(help="The environment; kept under it in bench/results/compat.json.")
    ],
) -> None:
    versions = {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}}
    others = unlike_pins()
    print(
        f"== {name}: {describe(versions)}; unlike the pins: {describe(others) or 'none'}",
        flush=True,
    )
    with TemporaryDirectory() as folder:
        kernels = compile_covering(Path(folder))
        tests, broken = run_tests(Path(folder))
    found = {
        "versions": versions,
        "unlike_pins": others,
        "kernels": kernels,
        "tests": tests,
        "broken": broken,
    }
    keep(name, found)
    faults = [*kernels["failed"], *kernels["spilled"]]
    print(
        f"== {name}: {kernels['compiled']} kernels compiled, {summary(faults)}; {describe(tests)}"
    )
    for failure in broken:
        print(failure)
    raise typer.Exit(bool(faults or broken))


def summary(faults: Sequence[object]) -> str:
    return f"{len(faults)} faults" if faults else "no faults"


if __name__ == "__main__":
    typer.run(main)
