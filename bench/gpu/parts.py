"""One part after the other: its processes run side by side until its time is over, then its table is printed."""

from __future__ import annotations

import tempfile
import time
import traceback
from pathlib import Path

from bench.gpu.group import Group
from bench.gpu.plan import Part
from bench.gpu.record import Record
from bench.gpu.run import NO_DEVICE, Row
from bench.report.gpu.page import part_table

WRITE_EVERY_SECONDS = 2.0


def run_parts(
    parts: list[Part],
    record: Record,
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
        record: takes what they say.
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
                record.rows = [*record.earlier, {"part": part.name, "case": "-", "skipped": why}]
                record.write()
            elif time.monotonic() < soft:
                run_part(groups, record, until, environment)
            record.close()
            if any(group.code == NO_DEVICE for group in groups):
                return False
            print_table(part.name, record.content, time.monotonic() - began)
    return True


def run_part(
    groups: list[Group], record: Record, until: float, environment: dict[str, str]
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
            if record.take(part, groups) and time.monotonic() - written > WRITE_EVERY_SECONDS:
                record.write()
                written = time.monotonic()
            time.sleep(0.1)
    finally:
        for group in groups:
            group.stop()
            if (begun := group.unfinished()) is not None:
                group.note(begun["case"], unfinished="at the end of the part's time")
        record.take(part, groups)
        record.write()


def print_table(part: str, content: Row, seconds: float) -> None:
    try:
        table = part_table(part, content)
    except Exception:  # a table that fails hides no other part
        table = traceback.format_exc()
    print(f"\n{part}, after {seconds:.0f} s\n\n{table}", flush=True)
