"""What a process of a GPU run does: the jobs of one module, one after another, each in a guard; rows go to a file at once.

    python -m bench.gpu.run MODULE GROUP --rows FILE --ends SECONDS [--dry] [--first] [--store FOLDER]

`python -m bench.gpu` starts these processes, and starts them again where one died: jobs that were begun are left out then. The file
has one JSON object a line. An object with an `event` tells how far the process is, all others are results.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# Exit codes: nothing more can run in this process, but in another; there is no GPU.
BROKEN, NO_DEVICE = 70, 71
TAIL = 2000

Row = dict[str, Any]


class Job(NamedTuple):
    """One piece of a part's work."""

    name: str
    """Says which case it is; the same in every process of the part."""
    do: Callable[[], Iterable[Row]]
    """Gives results, as they come."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one process of a run is told."""

    group: str
    """Which of the module's jobs are its own."""
    rows: Path
    """Where results go."""
    ends: float
    """When nothing new shall begin, on `time.monotonic`'s clock, which all processes share."""
    dry: bool = False
    """Small shapes in the interpreter: everything is tried, nothing is measured."""
    first: bool = False
    """Only what shows that everything works at all."""
    store: Path | None = None
    """Where the default model's parts are, if they are."""

    @property
    def device(self) -> str:
        """Where kernels run."""
        return "cpu" if self.dry else "cuda"

    @property
    def late(self) -> bool:
        """Whether nothing new should begin."""
        return time.monotonic() > self.ends

    def add(self, **row: Any) -> None:
        """Write a row in one piece: who is killed leaves whole lines."""
        line = json.dumps(row, default=str) + "\n"
        with self.rows.open("a", encoding="utf-8") as file:
            file.write(line)


def read_rows(file: Path) -> list[Row]:
    """Read what a process has written so far."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the disk is full
            continue
    return rows


def work(module: str, run: Run) -> None:
    """Do the jobs of a module that no earlier process of this group has begun."""
    begun = {row["case"] for row in read_rows(run.rows) if row.get("event") == "begun"}
    jobs_of = importlib.import_module(module).jobs
    torch = sys.modules.get("torch")
    if torch is not None and not run.dry and not torch.cuda.is_available():
        sys.exit(NO_DEVICE)
    if torch is not None and run.dry:
        from specdec_kernels.testing.interpreter import teach_bfloat16

        teach_bfloat16()
    jobs: list[Job] = jobs_of(run)
    run.add(event="planned", cases=[job.name for job in jobs])
    for job in jobs:
        if job.name in begun:
            continue
        if run.late:
            return
        run.add(event="begun", case=job.name, at=time.monotonic())
        try:
            for row in job.do():
                run.add(case=job.name, **row)
        except Exception as error:  # a case that fails hides no other
            run.add(case=job.name, **told(error))
        run.add(event="ended", case=job.name)
        if torch is not None and not run.dry:
            clear(torch)


def told(error: Exception) -> Row:
    """Say what went wrong, in a line and in full."""
    line = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
    return {"error": line, "tail": "".join(traceback.format_exception(error))[-TAIL:]}


def clear(torch: Any) -> None:
    """Give memory back; end the process if the device refuses everything from now on, as after a bad address."""
    gc.collect()
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        sys.exit(BROKEN)


def die_with(parent: int) -> None:
    """End this process and all that it has started once the run is gone that started it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("group")
    parser.add_argument("--rows", type=Path, required=True, help="where results go")
    parser.add_argument("--ends", type=float, required=True)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--store", type=Path)
    options = vars(parser.parse_args())
    module, parent = options.pop("module"), options.pop("parent")
    if parent is not None:
        die_with(parent)
    work(module, Run(**options))


if __name__ == "__main__":
    main()
