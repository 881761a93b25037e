"""Everything that takes a GPU to know, in one command and under ten minutes: `make gpu`, tried out by `make gpu DRY=1`.

Parts run one after another, each in a process that is stopped when its time is over; what a part has written by then
stays. Results go to bench/results/gpu; those of a dry run, which measures nothing, to a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from gpu_run import ROOT, Run, ended, execute
from report_gpu import progress, report

BENCH = Path(__file__).parent
FOLDER = BENCH / "results/gpu"
SECONDS = 570.0
# How long each part may take; what one leaves, the next ones have, and what no part has goes to the first of these that runs.
BOXES = {"tests": 190.0, "times": 200.0, "sweep": 90.0, "decoding": 75.0}
SPARE = ("decoding", "times")
# For a part to end by itself before it is stopped: it looks at the clock between cases.
GRACE = 12.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dry", action="store_true", help="Small shapes, interpreted; measures nothing."
    )
    parser.add_argument(
        "--model", nargs="*", default=[], help="Folder or GGUF file, also in parts."
    )
    parser.add_argument(
        "--gguf-wheel", help="Wheel of gguf, or a folder of wheels, if not installed."
    )
    parser.add_argument("--parts", nargs="+", choices=list(BOXES), default=list(BOXES))
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        print("make gpu: expected a CUDA device, got none; make gpu DRY=1 tries everything without")
        return 2
    folder = Path(tempfile.mkdtemp(prefix="gpu-dry-")) if options.dry else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    parts = [p for p in options.parts if p != "decoding" or options.model]
    if not parts:
        parser.error("decoding: expected --model, got none")
    # What runs is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        model: list[Any] = ["--scratch", scratch, "--model", *options.model]
        model += ["--gguf-wheel", options.gguf_wheel] if options.gguf_wheel else []
        worked = run_parts(parts, folder, options.dry, model if "decoding" in parts else [])
    print_report(folder)
    print(f"results: {folder}, {time.monotonic() - began:.0f} s in all")
    return 0 if worked else 1


def run_parts(parts: list[str], folder: Path, dry: bool, model: list[Any]) -> bool:
    """Run one part after the other, and tell whether all of them worked."""
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths)}
    if dry:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    extra = {"decoding": model, "tests": ["--decoding", *model] if model else []}
    identity = datetime.now(UTC).isoformat()
    # What measures nothing may take as long as it does.
    began = float("inf") if dry else time.monotonic()
    worked = True
    for part, until in schedule(parts).items():
        started = time.monotonic()
        hard = Run(identity, folder, began + until, dry)
        soft = Run(identity, folder, began + until - GRACE, dry)
        print(f"{part}: at most {hard.ends - started:.0f} s", flush=True)
        command = [sys.executable, BENCH / f"gpu_{part}.py", *soft.options(), *extra.get(part, [])]
        code, output = execute(hard, command, group=True, **environment)
        content = hard.earlier(part)
        took = f"{time.monotonic() - started:.0f} s"
        print(f"{part}: {ended(code)} after {took}, {progress(content)}", flush=True)
        if wrong := faults(part, code, content):
            worked = False
            print(f"{part}: failed: {', '.join(wrong)}")
        if code != 0:
            print(output[-2000:])
    return worked


def schedule(parts: list[str]) -> dict[str, float]:
    """Say by which second each part must have ended."""
    boxes = {part: BOXES[part] for part in parts}
    boxes[next((p for p in SPARE if p in boxes), parts[-1])] += SECONDS - sum(boxes.values())
    return dict(zip(parts, accumulate(boxes.values()), strict=True))


def faults(part: str, code: int | None, content: dict[str, Any]) -> list[str]:
    """Say what is wrong with a part; that its time was too short for all cases is no fault, but of the tests."""
    wrong = [] if code == 0 else [ended(code)]
    rows = content["rows"]
    if not rows:
        wrong.append("no results")
    if part == "tests":
        wrong += [f"{row['kind']} {row['op']}" for row in rows if row["ok"] is False]
        wrong += [] if content["complete"] else ["not complete"]
    elif part == "decoding":
        wrong += [row["method"] for row in rows if not row["lossless"]]
    else:
        wrong += [f"{row['op']} {row['case']}" for row in rows if "error" in row]
    return wrong


def print_report(folder: Path) -> None:
    for name, text in report(folder).items():
        print(f"\n{name}\n\n{text}")


if __name__ == "__main__":
    sys.exit(main())
