"""What the parts of `make gpu` share: the run that they belong to, its time and its result files."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "triton", "transformers", "numpy")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of `make gpu`, as each of its processes is told of it."""

    id: str
    """What is passed in one run counts in no other."""
    folder: Path
    """Results."""
    ends: float
    """When this part is to stop by itself, on `time.monotonic`'s clock, which all processes share."""
    dry: bool
    """Small shapes in the interpreter: everything is tried, nothing is measured."""

    @property
    def device(self) -> str:
        """Where kernels run."""
        return "cpu" if self.dry else "cuda"

    @property
    def late(self) -> bool:
        """Whether nothing new should begin."""
        return time.monotonic() > self.ends

    def options(self) -> list[str]:
        """Write out as another process of this part takes it."""
        options = ["--results", str(self.folder), "--run-id", self.id, "--ends", str(self.ends)]
        return [*options, "--dry"] if self.dry else options

    def earlier(self, part: str) -> dict[str, Any]:
        """Return what another process of this very run has written."""
        file = self.folder / f"{part}.json"
        content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return content if content.get("run") == self.id else {"complete": False, "rows": []}


def run_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse a part's options; `options.run` is the run."""
    parser.add_argument("--run-id", default=datetime.now(UTC).isoformat())
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--ends", type=float, default=float("inf"))
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    options.run = Run(options.run_id, options.results, options.ends, options.dry)
    if options.dry:
        from specdec_kernels.testing.interpreter import teach_bfloat16

        teach_bfloat16()
    return options


def execute(
    run: Run, command: list[Any], *, group: bool = False, **environment: str
) -> tuple[int | None, str]:
    """Run a command until the part's end.

    Args:
        run: when to stop it.
        command: its words.
        group: give it a process group: whatever it has started, and that in turn, is stopped when it ends, too. What is
            executed within stays in this group.
        environment: variables.

    Returns:
        Its exit code, None if it was stopped, and what it printed.
    """
    left = run.ends - time.monotonic()
    if left < 1:
        return None, "not begun"
    # A file, for a pipe stays open as long as anything holds it that the command has left running.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0 if group else None,
        )
        try:
            code: int | None = process.wait(None if math.isinf(left) else left)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL) if group else process.kill()
            process.wait()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def ended(code: int | None) -> str:
    """Say how a command ended."""
    return "stopped at the time limit" if code is None else f"exit code {code}"


class Results:
    """A part's file, whole after every row: a part that is stopped leaves what it has."""

    def __init__(self, run: Run, part: str) -> None:
        """Begin an empty file."""
        self.run, self.file = run, run.folder / f"{part}.json"
        self.content: dict[str, Any] = {**describe(run), "complete": False, "rows": []}
        self._write()

    def add(self, **row: Any) -> None:
        """Add a row."""
        self.content["rows"].append(row)
        self._write()

    def note(self, **facts: Any) -> None:
        """Add what holds for all rows."""
        self.content |= facts
        self._write()

    def _write(self) -> None:
        scratch = self.file.with_suffix(".new")
        scratch.write_text(json.dumps(self.content, indent=1) + "\n")
        scratch.replace(self.file)


@contextmanager
def results_of(run: Run, part: str) -> Iterator[Results]:
    """Write a part's file; complete if all was done in time."""
    results = Results(run, part)
    yield results
    results.note(complete=not run.late)


def describe(run: Run) -> dict[str, Any]:
    """Say what is measured, where and with what."""
    facts = {
        "measured": not run.dry,
        "run": run.id,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": "interpreter",
        "versions": versions(),
    }
    if not run.dry:
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "device": properties.name,
            "processors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "card": _ask_driver(),
        }
    return facts


def versions() -> dict[str, str | None]:
    """Say what the figures belong to."""
    packages = {package: metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version(), "cuda": torch.version.cuda, **packages}


def _ask_driver() -> dict[str, str]:
    """Driver, clocks and power limit, as they are found; nothing is set."""
    names = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, answer.stdout.splitlines()[0].split(", "), strict=True))
