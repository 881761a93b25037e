"""What takes a GPU to know, in two commands that fit a quarter of an hour; docs/gpu.md says what they measure.

    python -m bench.gpu --first [--model PART]
    python -m bench.gpu --seconds 480 --out FOLDER [--model PART]

Parts run one after another, what tells most first. Each works in processes of its own, which are started again where one
dies; what there is by then is printed and lies in FOLDER/gpu.json, whole at any moment. Nothing but Python is needed here.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from bench import PATHS, ROOT
from bench.gpu.model import STORE, store
from bench.gpu.run import BROKEN, NO_DEVICE, TAIL, Row, read_rows
from bench.report.gpu.page import ARCHIVE, part_table, summary

BEGAN = time.monotonic()
"""When the run's time began: nothing above takes any."""
PACKAGES = ("torch", "triton", "transformers", "numpy")
OPS = sorted(
    file.stem
    for file in (ROOT / "kernels/specdec_kernels/testing/cases").glob("*.py")
    if file.stem != "__init__"
)
WRITE_EVERY_SECONDS = 2.0


class Part(NamedTuple):
    """A part of a run."""

    name: str
    until: float
    """The share of the run's time by which it has ended; what a part leaves, the next ones have."""
    longest: float
    """Seconds of one case; one that takes longer is stopped, and the others go on."""
    groups: list[tuple[str, str]]
    """Modules and what they do of this part, each in a process of its own, side by side."""
    beside: tuple[tuple[str, str], ...] = ()
    """The same, of what later parts need and other processors have time for."""
    package: str = "bench.gpu.jobs"
    """Where the modules are."""


def correct(module: str) -> list[tuple[str, str]]:
    """Split the ops among processes; attention, which has most cases, among several."""
    others = [(module, op) for op in OPS if op != "tree_attention"]
    return [(module, f"tree_attention {at}/4") for at in range(4)] + others


def parts_of(first: bool, dry: bool, model: bool) -> list[Part]:
    """List the parts, what tells most first."""
    if first:
        return [Part("first", 0.95, 60, [("correct", "all")] if dry else correct("correct"))]
    together = [("correct", "all")] if dry else correct("correct")
    # A folder with the model, and compiled peers.
    beside = [("texts", "unpack")] if model else []
    beside += [] if dry else [("times", f"warm {at}/4") for at in range(4)]
    tests = [("tests", name) for name in (["dry"] if dry else ["memcheck", "whole", *OPS])]
    return [
        Part("correct", 0.165, 45, together, tuple(beside)),
        Part("rounds", 0.40, 60, [("rounds", "all")]),
        Part("times", 0.66, 40, [("times", "all")]),
        Part("texts", 0.84, 60, [("texts", "all")]),
        Part("tests", 0.93, math.inf, tests),  # they look at the clock themselves
        Part("sweep", 0.98, math.inf, [("sweep", "all")]),
    ]


class Group:
    """A process that does some of a part's jobs, and the ones that take its place where it dies."""

    def __init__(self, part: Part, at: int, scratch: Path, options: list[str]) -> None:
        self.part, self.beside = part, at >= len(part.groups)
        self.module, self.name = [*part.groups, *part.beside][at]
        self.rows_file = scratch / f"{part.name}-{at}.jsonl"
        self.log = scratch / f"{part.name}-{at}.log"
        self.options = ["--rows", str(self.rows_file), "--parent", str(os.getpid()), *options]
        self.process: subprocess.Popen[bytes] | None = None
        self.code: int | None = None
        """Of the last process, once there will be no other."""
        self._rows: tuple[int, list[Row]] = (0, [])

    @property
    def rows(self) -> list[Row]:
        """What there is so far; read where it has grown."""
        size = self.rows_file.stat().st_size if self.rows_file.exists() else 0
        if size != self._rows[0]:
            self._rows = (size, read_rows(self.rows_file))
        return self._rows[1]

    def start(self, environment: dict[str, str]) -> None:
        module = f"{self.part.package}.{self.module}"
        command = [sys.executable, "-m", "bench.gpu.run", module, self.name, *self.options]
        self.environment = environment
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def look(self) -> None:
        """Notice what has ended, died or takes too long."""
        assert self.process is not None
        code, begun = self.process.poll(), self.unfinished()
        if code is None:
            if begun and time.monotonic() - begun["at"] > self.part.longest:
                self.stop()
                self.note(begun["case"], error=f"stopped after {self.part.longest:g} s")
                self.start(self.environment)
            return
        self.stop()  # what it has left running
        if begun:
            self.note(begun["case"], error=f"died with exit code {code}")
        elif code not in (0, BROKEN, NO_DEVICE):
            self.note(self.name, error=f"died with exit code {code}")
            self.code = code
            return
        if begun or code == BROKEN:
            self.start(self.environment)
        else:
            self.code = code

    def unfinished(self) -> Row | None:
        """Return the job that was begun and has not ended."""
        events = [row for row in self.rows if row.get("event") in ("begun", "ended")]
        return events[-1] if events and events[-1]["event"] == "begun" else None

    def note(self, case: str, **what: str) -> None:
        """Write for a process that can no longer."""
        tail = self.log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        lines = ({"case": case, **what, "tail": tail}, {"event": "ended", "case": case})
        with suppress(OSError), self.rows_file.open("a", encoding="utf-8") as file:
            file.writelines("\n" + json.dumps(line) + "\n" for line in lines)

    def stop(self) -> None:
        """End the process and all that it has started."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Archive:
    """What is known so far, in one file that is whole at any moment."""

    def __init__(self, folder: Path | None, head: Row) -> None:
        self.file = folder and folder / ARCHIVE
        self.head, self.rows, self.planned = head, [], {}
        self.earlier: list[Row] = []
        self.trouble: str | None = None

    def take(self, part: str, groups: list[Group]) -> bool:
        """Take a part's rows as they are now; tell whether there are new ones."""
        events = [(group, row) for group in groups for row in group.rows]
        own = [
            {"part": part, **({"beside": group.module} if group.beside else {}), **row}
            for group, row in events
            if "event" not in row
        ]
        self.planned[part] = [
            case
            for group, row in events
            if row.get("event") == "planned" and not group.beside
            for case in row["cases"]
        ]
        rows = self.earlier + own
        new, self.rows = len(rows) != len(self.rows), rows
        return new

    def close(self) -> None:
        """Let the next part begin."""
        self.earlier = self.rows

    @property
    def content(self) -> Row:
        planned = {part: list(dict.fromkeys(cases)) for part, cases in self.planned.items()}
        return {**self.head, "planned": planned, "rows": self.rows}

    def write(self) -> None:
        """Write the file; where it cannot be, the run goes on and its tables are printed all the same."""
        if self.file is None:
            return
        head = json.dumps({k: v for k, v in self.content.items() if k != "rows"})[:-1]
        rows = ",\n".join(json.dumps(row) for row in self.rows)
        try:
            write_whole(self.file, f'{head}, "rows": [\n{rows}\n]}}\n'.encode())
            trouble = None
        except OSError as error:
            trouble = f"{self.file}: not written: {error}"
        if trouble and trouble != self.trouble:
            print(trouble, flush=True)
        self.trouble = trouble


def write_whole(file: Path, content: bytes) -> None:
    """Write a file that is never seen half-written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(file.name + ".new")
    try:
        new.write_bytes(content)
        new.replace(file)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise


def run_parts(
    parts: list[Part],
    archive: Archive,
    *,
    began: float,
    seconds: float,
    options: list[str],
    environment: dict[str, str],
    missing: dict[str, str],
) -> bool:
    """Run one part after the other, and print each one's table; False where there is no GPU.

    Args:
        parts: in their order.
        archive: takes what they say.
        began: when the run's time began.
        seconds: the run's time.
        options: for every process.
        environment: of every process.
        missing: what cannot run, and why.
    """
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        for part in parts:
            until = began + part.until * seconds
            soft = until - min(8.0, 0.03 * seconds)
            words = [*options, "--ends", str(soft)]
            count = len(part.groups) + len(part.beside)
            groups = [Group(part, at, Path(scratch), words) for at in range(count)]
            if why := missing.get(part.name):
                archive.rows = [*archive.earlier, {"part": part.name, "case": "-", "skipped": why}]
                archive.write()
            elif time.monotonic() < soft:
                run_part(groups, archive, until, environment)
            archive.close()
            if any(group.code == NO_DEVICE for group in groups):
                return False
            print_table(part.name, archive.content, time.monotonic() - began)
    return True


def run_part(
    groups: list[Group], archive: Archive, until: float, environment: dict[str, str]
) -> None:
    """Let the groups work until all have ended or their time is over."""
    part, written = groups[0].part.name, 0.0
    try:
        for group in groups:
            group.start(environment)
        while any(group.code is None for group in groups) and time.monotonic() < until:
            for group in groups:
                if group.code is None:
                    group.look()
            if archive.take(part, groups) and time.monotonic() - written > WRITE_EVERY_SECONDS:
                archive.write()
                written = time.monotonic()
            time.sleep(0.1)
    finally:
        for group in groups:
            group.stop()
            if (begun := group.unfinished()) is not None:
                group.note(begun["case"], unfinished="at the end of the part's time")
        archive.take(part, groups)
        archive.write()


def print_table(part: str, content: Row, seconds: float) -> None:
    try:
        table = part_table(part, content)
    except Exception:  # a table that fails hides no other part
        table = traceback.format_exc()
    print(f"\n{part}, after {seconds:.0f} s\n\n{table}", flush=True)


def machine(dry: bool) -> Row:
    """Say what is measured on, and with what; nothing on the card is set."""
    if dry:
        return {"device": "interpreter", "card": {}, "versions": versions()}
    names = ("name", "driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    card: dict[str, str] = {}
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        card = dict(zip(names, answer.stdout.splitlines()[0].split(", "), strict=True))
    device = card.pop("name", "no GPU that nvidia-smi knows")
    return {"device": device, "card": card, "versions": versions()}


def versions() -> dict[str, str]:
    """Say what the figures belong to."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--first", action="store_true", help="Does everything work? In 90 s.")
    parser.add_argument("--seconds", type=float, help="480, with --first 85; from process start.")
    parser.add_argument("--out", type=Path, help=f"Folder for {ARCHIVE}.")
    parser.add_argument("--model", type=Path, nargs="*", default=[], help="Parts, or a folder.")
    parser.add_argument("--store", type=Path, default=STORE, help="Where parts are put aside.")
    parser.add_argument("--dry", action="store_true", help="Small shapes, interpreted.")
    options = parser.parse_args()
    seconds = options.seconds or (85.0 if options.first else 480.0)
    head = {
        "measured": not options.dry,
        "first": options.first,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "machine": machine(options.dry),
    }
    archive = Archive(options.out, head)
    archive.write()
    print(json.dumps(head["machine"]), flush=True)
    missing = {}
    try:
        place = store(options.model, options.store)
    except (OSError, ValueError) as error:
        place, missing["texts"] = options.store, str(error)
    print(missing.get("texts") or f"model: {place}", flush=True)
    # What runs is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    known = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*PATHS, *filter(None, [known])])}
    words = ["--store", str(place)]
    if options.dry:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        words.append("--dry")
    if options.first:
        words.append("--first")
    there = run_parts(
        parts_of(options.first, options.dry, not missing), archive, began=BEGAN, seconds=seconds,
        options=words, environment=environment, missing=missing,
    )  # fmt: skip
    if not there:
        print("bench.gpu: expected a CUDA device, got none; --dry tries everything without")
        return 2
    told, right = summary(archive.content)
    print(f"\n{told}\n\n{time.monotonic() - BEGAN:.0f} s in all; {archive.file or 'no --out'}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
