"""A process of a part: started, watched, and started again where it dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from bench import ROOT
from bench.gpu.plan import Part
from bench.gpu.run import BROKEN, NO_DEVICE, TAIL, Row, read_rows


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
