"""Compile the kernels ahead of time for several GPUs and tabulate registers and shared memory; needs no GPU.

python -m bench.counted.aot                      every case for every GPU; fills docs/kernels/registers.md
python -m bench.counted.aot --covering --json F  only the cases that `make test` checks
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # what is interpreted is not compiled

import triton
import typer
from rich.progress import track

from bench.ops.cases import OPS, cases_of
from bench.report.pages import DOCS, fill
from specdec_kernels.testing.aot import compile_launches
from specdec_kernels.testing.case import ARCHS, Inputs


class Job(NamedTuple):
    """A case to compile for one GPU."""

    op: str
    case: str
    arch: str


def jobs(covering: bool) -> Iterator[Job]:
    for op in OPS:
        for case in cases_of(op, dry=False):
            for arch in case.covering if covering else ARCHS:
                yield Job(op, case.name, arch)


def run(job: Job) -> list[dict[str, object]]:
    """Compile one job; an error is a result too, so that one case hides no other."""
    (case,) = (case for case in cases_of(job.op, dry=False) if case.name == job.case)
    try:
        compiled = compile_launches(job.arch, case.prepare(Inputs(random=False)))
        return [{**job._asdict(), **asdict(kernel)} for kernel in compiled]
    except Exception as error:
        return [{**job._asdict(), "error": f"{type(error).__name__}: {error}"}]


def fault_of(row: dict[str, Any]) -> str | None:
    """Return what is wrong with a compiled kernel, if anything; the tests check the covering cases in more detail."""
    if "error" in row:
        return row["error"]
    if row["spills"]:
        return f"{row['kernel']}: {row['spills']} bytes spilled"
    return f"{row['kernel']}: TF32" if row["tf32"] else None


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    for op, of_op in groupby(rows, key=lambda row: row["op"]):
        yield f"\n## {op}\n"
        yield "| case | kernel | warps | " + " | ".join(ARCHS) + " |"
        yield "|---|---|---|" + "---|" * len(ARCHS)
        cells: dict[tuple[Any, ...], dict[str, str]] = {}
        for row in of_op:
            place = cells.setdefault((row["case"], row["kernel"], row["warps"]), {})
            place[row["arch"]] = f"{row['registers']} / {round(row['shared_bytes'] / 1024, 1):g}"
        for (case, kernel, warps), of_case in cells.items():
            figures = " | ".join(of_case.get(arch, "") for arch in ARCHS)
            yield f"| {case} | `{kernel}` | {warps} | {figures} |"


def main(
    covering: Annotated[
        bool, typer.Option(help="Only the cases that every test run compiles.")
    ] = False,
    json_path: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write the results to this file. Without --covering they also fill docs/kernels/registers.md.",
        ),
    ] = None,
) -> None:
    todo = list(jobs(covering))
    # Forked processes would inherit torch's threads half-way.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = track(pool.map(run, todo), description="compiling", total=len(todo))
        rows = [row for result in results for row in result]
    if json_path:
        json_path.write_text(json.dumps(rows, indent=1))
    wrong = [(row, fault) for row in rows if (fault := fault_of(row))]
    for row, fault in wrong:
        print(row["op"], row["case"], row["arch"], fault)
    if not covering and not wrong:
        text = "\n".join([f"Triton {triton.__version__}.", *tables(rows)])
        fill(DOCS / "kernels" / "registers.md", {"compiled": text})
    raise typer.Exit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
