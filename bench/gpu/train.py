"""A training in one command: the default model writes text, both drafters are trained on it and measured.

    python -m bench.gpu.train --seconds 480 --out FOLDER [--model PART]

Writes FOLDER/training.json (curves, statistics of the text) and FOLDER/drafters.zip (the drafters' folders). Both are updated
during the run, so that an interrupted run keeps its results.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu.machine import machine
from bench.gpu.model import STORE, model_folder, store
from bench.gpu.record import write_whole
from bench.gpu.run import Row, told
from bench.gpu.self_text import rows_that_fit, write_lines, write_text

BEGAN = time.monotonic()
"""When the time began: nothing above takes any."""
# The share of the time by which a stage has ended.
WRITTEN = 0.40
TRAINED = {"redrafter": 0.72, "kangaroo": 0.97}
MAX_EPOCHS = {"redrafter": 4, "kangaroo": 6}
HELD_OUT = 12
PROBED = 64
"""Conversations that tell how fast a drafter learns."""
MAX_BYTES = 12_000_000
EXIT_LAYER = 5


class Progress:
    """What is known, written down as it comes."""

    def __init__(self, folder: Path, head: Row) -> None:
        self.folder, self.content = folder, head
        self.saved = 0.0

    def save(self, **facts: Any) -> None:
        self.content |= facts
        self.content["seconds_so_far"] = round(time.monotonic() - BEGAN, 1)
        self.saved = time.monotonic()
        try:
            write_whole(self.folder / "training.json", json.dumps(self.content, indent=1).encode())
        except OSError as error:
            print(f"training.json: not written: {error}", flush=True)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - BEGAN:5.0f} s  {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=480.0, help="Time limit from process start."
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="Write training.json and drafters.zip to this folder.",
    )
    parser.add_argument(
        "--model",
        type=Path,
        nargs="*",
        default=[],
        help="Parts of bench.gpu.archive, or the model's folder.",
    )
    parser.add_argument("--store", type=Path, default=STORE, help="Folder that keeps the parts.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--rows", type=int, help="Conversations at once; by default as many as fit into memory."
    )
    parser.add_argument("--answer-tokens", type=int, default=224)
    options = parser.parse_args()
    folder = model_folder(store(options.model, options.store))
    import torch

    from specdec.load import load_target

    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench.gpu.train: expected a CUDA device, got none; use --device cpu to try it")
        return 2
    dtype = torch.bfloat16
    target = load_target(str(folder), dtype=dtype, device=options.device)
    head = {
        "measured": options.device == "cuda",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": options.seconds,
        "machine": machine(dry=False),
    }
    progress = Progress(options.out, head)
    progress.save()
    with tempfile.TemporaryDirectory(prefix="gpu-train-") as scratch:
        kept, text = Path(scratch) / "text.db", Path(scratch) / "text.jsonl"
        rows = options.rows or rows_that_fit(target)
        until = BEGAN + WRITTEN * options.seconds
        data = write_text(target, kept, rows, options.answer_tokens, until, progress)
        progress.save(data=data)
        write_lines(kept, text)
        right, ends = True, BEGAN + options.seconds
        for method, share in TRAINED.items():
            until = BEGAN + share * options.seconds
            try:
                learn(target, method, text, Path(scratch), until, ends, progress)
            except Exception as error:  # the other one goes on
                right = False
                progress.save(**{method: {**progress.content.get(method, {}), **told(error)}})
                progress.say(f"{method}: {told(error)['error']}")
    print(json.dumps(progress.content.get("data")))
    return 0 if right else 1


def config_of(target: Any, method: str) -> Any:
    """Shape a drafter as the shipped one is."""
    from specdec.drafters.kangaroo import KangarooConfig
    from specdec.drafters.redrafter import ReDrafterConfig

    width, heads = target.config.hidden_size, target.config.num_attention_heads
    if method == "redrafter":
        return ReDrafterConfig(
            hidden_size=width, exit_dim=2 * width, trained_length=4, draft_length=4, beam_width=4,
            min_prob=0.1, min_step_prob=0.4,
        )  # fmt: skip
    depth = min(EXIT_LAYER, len(target.layer_types) - 1)
    return KangarooConfig(
        hidden_size=width, heads=heads, kv_heads=heads, head_dim=width // heads, exit_layer=depth,
        eta=0.7,
    )  # fmt: skip


def learn(
    target: Any, method: str, text: Path, scratch: Path, until: float, ends: float,
    progress: Progress,
) -> None:  # fmt: skip
    """Train a drafter for as many epochs as the time allows, on as much text.

    Args:
        target: the teacher.
        method: which drafter.
        text: what it learns from.
        scratch: where what is unfinished goes.
        until: when it should have ended, by what a probe says of its speed.
        ends: when it is given up.
        progress: takes what is known.
    """
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    probe = scratch / "probe.jsonl"
    probe.write_text("".join(lines[: HELD_OUT + PROBED]), encoding="utf-8")
    times: list[tuple[float, str, int]] = []

    def note(what: str, done: int, total: int, figures: dict[str, float]) -> None:
        times.append((time.monotonic(), what, done))

    run(target, method, probe, scratch / f"probe-{method}", 2, note)
    step, validation, reading = speeds(times)
    steps_of = batch_of(target, method)
    learned = lines[HELD_OUT:]
    positions = sum(units(line, method) for line in learned)
    left = until - time.monotonic() - reading * len(learned)
    epoch = step * positions / steps_of + validation
    epochs = int(left / (1.15 * epoch))
    progress.say(f"{method}: {1e3 * step:.1f} ms a step, {epoch:.0f} s an epoch, {left:.0f} s left")
    if epochs < 1:  # less text then
        share = max(0.0, left / 1.15 - validation) / max(1e-9, epoch - validation)
        kept = max(PROBED, int(share * len(learned)))
        text = scratch / f"{method}.jsonl"
        text.write_text("".join(lines[: HELD_OUT + kept]), encoding="utf-8")
    report: Row = {"step_seconds": step, "validation_seconds": validation, "curve": []}

    def show(what: str, done: int, total: int, figures: dict[str, float]) -> None:
        if time.monotonic() > ends:
            raise TimeoutError(f"{method}: {done} of {total} steps in its time")
        report["curve"].append({"what": what, "done": done, "of": total, **figures})
        if time.monotonic() - progress.saved > 5:
            progress.save(**{method: report})

    epochs = max(1, min(MAX_EPOCHS[method], epochs))
    out = run(target, method, text, scratch / f"run-{method}", epochs, show)
    report |= json.loads((out / "training.json").read_text(encoding="utf-8"))  # its log, too
    del report["curve"]
    report["validation"] = next(x["validation"] for x in report["log"][::-1] if "validation" in x)
    report["shipped"] = shipped_validation(target, method, text)
    progress.save(**{method: report})
    size = save_drafters(scratch, progress.folder)
    progress.say(f"{method}: {report['validation']}; drafters.zip {size / 1e6:.1f} MB")
    if size > MAX_BYTES:
        raise ValueError(f"drafters.zip: expected at most {MAX_BYTES} bytes, got {size}")


def batch_of(target: Any, method: str) -> int:
    """Positions of a step, or texts."""
    return {"redrafter": 512 if target.device.type == "cuda" else 32, "kangaroo": 8}[method]


def units(line: str, method: str) -> int:
    """Count what a drafter learns of a conversation: texts, or positions at most."""
    fields = json.loads(line)
    return 1 if method == "kangaroo" else len(fields["prompt_ids"]) + len(fields["answer_ids"])


def run(
    target: Any, method: str, text: Path, folder: Path, epochs: int, progress: Callable[..., None]
) -> Path:
    """Train, and return where the drafter is."""
    from specdec.train.loop import Schedule
    from specdec.train.run import Recipe, train_drafter

    rate = {"redrafter": 2e-3, "kangaroo": 1e-2}[method]
    schedule = Schedule(epochs=epochs, batch=batch_of(target, method), learning_rate=rate)
    vocabulary = min(8192, target.config.vocab_size)
    recipe = Recipe(schedule, draft_vocabulary=vocabulary, held_out=HELD_OUT)
    out = folder / method
    depth = min(EXIT_LAYER, len(target.layer_types) - 1)
    train_drafter(
        target, config_of(target, method), [text], folder, out, recipe,
        features=folder.with_name(f"features-{text.stem}"), exit_layers=[depth], progress=progress,
    )  # fmt: skip
    return out


def speeds(times: list[tuple[float, str, int]]) -> tuple[float, float, float]:
    """Tell seconds a step, a validation, and a conversation that is read, from a probe of two epochs."""
    steps = [(at, done) for at, what, done in times if what == "training"]
    # After each epoch the training's last figures come, then the validation's.
    (_, _), (first_validated, first), (second, last), (validated, _) = steps[-4:]
    reads = [(at, done) for at, what, done in times if what == "reading"]
    reading = 0.0
    if len(reads) > 1 and reads[-1][1] > reads[0][1]:
        reading = (reads[-1][0] - reads[0][0]) / (reads[-1][1] - reads[0][1])
    return (second - first_validated) / max(1, last - first), validated - second, reading


def shipped_validation(target: Any, method: str, text: Path) -> Row | None:
    """Measure the shipped drafter on the same prompts; None for a model that none is shipped for."""
    from specdec.drafters import load_drafter
    from specdec.selftext.conversation import read_conversations
    from specdec.train.validate import acceptance

    try:
        drafter = load_drafter(method, target)
    except ValueError:
        return None
    prompts = [c.prompt_ids for c in read_conversations(text)[:HELD_OUT]]
    return acceptance(target, drafter, prompts)


def save_drafters(scratch: Path, folder: Path) -> int:
    """Put all that was trained so far into one file, and return its size."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for method in TRAINED:
            for file in sorted((scratch / f"run-{method}" / method).glob("*")):
                archive.write(file, f"{method}/{file.name}")
    write_whole(folder / "drafters.zip", packed.getvalue())
    return len(packed.getvalue())


if __name__ == "__main__":
    sys.exit(main())
