"""What takes a GPU to know, in two commands that fit a quarter of an hour; docs/results/gpu.md says what they measure.

    python -m bench.gpu --first [--model PART]
    python -m bench.gpu --seconds 480 --out FOLDER [--model PART]

Parts run one after another, what tells most first. Each works in processes of its own, which are started again where one
dies; what there is by then is printed and lies in FOLDER/gpu.json, whole at any moment. Nothing but Python is needed here.
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
"""When the run's time began: nothing above takes any."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--first", action="store_true", help="Does everything work? In 90 s.")
    parser.add_argument("--seconds", type=float, help="480, with --first 85; from process start.")
    parser.add_argument("--out", type=Path, help=f"Folder for {RECORD}.")
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
        print("bench.gpu: expected a CUDA device, got none; --dry tries everything without")
        return 2
    told, right = summary(record.content)
    print(f"\n{told}\n\n{time.monotonic() - BEGAN:.0f} s in all; {record.file or 'no --out'}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
