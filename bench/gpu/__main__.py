"""GPU checks and benchmarks in two commands, within 15 minutes; docs/results/gpu.md describes them.

    python -m bench.gpu --first [--model PART]
    python -m bench.gpu --seconds 480 --out FOLDER [--model PART]

Parts run in order of importance, each in its own processes, which are restarted if they die. Results are printed as each part
ends and written to FOLDER/gpu.json, which is complete at any moment. This process needs only Python's standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from bench import PATHS
from bench.gpu.machine import machine
from bench.gpu.model import STORE, store
from bench.gpu.parts import run_parts
from bench.gpu.plan import parts_of
from bench.gpu.record import Record
from bench.report.gpu.page import RECORD, summary

BEGAN = time.monotonic()
"""Start of the run's time limit; the imports above take no time."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--first", action="store_true", help="Only check that everything runs, in 90 s."
    )
    parser.add_argument(
        "--seconds", type=float, help="Time limit from process start: 480, with --first 85."
    )
    parser.add_argument("--out", type=Path, help=f"Write {RECORD} to this folder.")
    parser.add_argument(
        "--model",
        type=Path,
        nargs="*",
        default=[],
        help="Parts of bench.gpu.archive, or the model's folder.",
    )
    parser.add_argument("--store", type=Path, default=STORE, help="Folder that keeps the parts.")
    parser.add_argument(
        "--dry",
        action="store_true",
        help="Small shapes in the interpreter; needs no GPU, measures nothing.",
    )
    options = parser.parse_args()
    seconds = options.seconds or (85.0 if options.first else 480.0)
    head = {
        "measured": not options.dry,
        "first": options.first,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "machine": machine(options.dry),
    }
    record = Record(options.out, head)
    record.write()
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
        parts_of(options.first, options.dry, not missing), record, began=BEGAN, seconds=seconds,
        options=words, environment=environment, missing=missing,
    )  # fmt: skip
    if not there:
        print("bench.gpu: expected a CUDA device, got none; use --dry to run without one")
        return 2
    told, right = summary(record.content)
    print(
        f"\n{told}\n\n{time.monotonic() - BEGAN:.0f} s; results: {record.file or 'not written, no --out'}"
    )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
