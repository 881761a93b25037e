"""Part (d): whole texts on this GPU, by every method, tokens checked, and where the time goes.

    python bench/gpu_decoding.py --results FOLDER --scratch FOLDER --model FOLDER|FILE.gguf|PART PART [--gguf-wheel WHEEL|FOLDER]

Methods take turns on each question, as in `specdec bench`. Then each writes one text under a profiler, which tells what
the device does in each stage. `--prepare` leaves the converted model in the scratch folder, and compiled kernels.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import zipfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gpu_run import ROOT, Results, Run, results_of, run_options
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from specdec import session
from specdec.embedded import EMBEDDED
from specdec.evaluate.benchmark import Prompt, chat_prompts, run_benchmark
from specdec.evaluate.methods import TRANSFORMERS, Runner
from specdec.evaluate.questions import read_questions
from specdec.loading import load_target
from specdec.metrics import Stopwatch
from specdec.models import _convert, load_model

METHODS = ["plain", TRANSFORMERS, "lookup", "redrafter", "kangaroo", "mixed"]
QUESTIONS = ROOT / "tests/data/questions.jsonl"
NEW, NEW_DRY = 64, 8
# What the profiles may take, and how long a text they see: every operator is an event.
PROFILES_SECONDS, NEW_PROFILED = 20.0, 16
MARK = "stage "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, nargs="+", required=True)
    parser.add_argument("--gguf-wheel", type=Path)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true")
    options = run_options(parser)
    run: Run = options.run
    folder = model_folder(options.model, options.gguf_wheel, options.scratch)
    dtype = torch.float32 if run.dry else torch.bfloat16
    load = {"dtype": dtype, "device": run.device}
    target = load_target(str(folder), **load)
    eos = session.end_tokens(target.model.generation_config)
    stock, _ = load_model(str(folder), **load)
    runner = Runner(target, stock, max_nodes=session.MAX_NODES, eos=eos)
    methods, limit = (["plain", "lookup"], 1) if run.dry else (METHODS, None)
    questions = read_questions(QUESTIONS, per_category=1, limit=limit)
    prompts = list(chat_prompts(target.tokenizer, questions, 1))
    warm(run, runner, methods, prompts)
    if options.prepare:
        return
    with results_of(run, "decoding") as results:
        results.note(planned=len(prompts))
        ends = Run(run.id, run.folder, run.ends - PROFILES_SECONDS, run.dry)
        found = run_benchmark(
            runner,
            while_early(ends, prompts),
            methods,
            max_new_tokens=most(run),
            load_model64=lambda: load_model(str(folder), **load)[0].double(),
            progress=lambda question, method: None,
        )
        write_down(results, found.as_json())
        stages = {}
        for method in methods:
            if method != TRANSFORMERS and not run.late:
                stages[method] = device_stages(run, runner, method, prompts[0].ids)
        results.note(device_stages=stages)


def most(run: Run) -> int:
    return NEW_DRY if run.dry else NEW


def warm(run: Run, runner: Runner, methods: list[str], prompts: list[Prompt]) -> None:
    """Let every method write whole texts: what is compiled depends on a cache's slots, and these on the prompt's length."""
    by_length = sorted((prompt.ids for prompt in prompts), key=len)
    for at in sorted({0, len(by_length) // 2, len(by_length) - 1}):
        for method in methods:
            if not run.late:
                runner.write(method, by_length[at], most(run))


def while_early(run: Run, prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Give prompts while there is time; always one."""
    for at, prompt in enumerate(prompts):
        if at and run.late:
            return
        yield prompt


def write_down(results: Results, found: dict[str, Any]) -> None:
    results.note(machine=found["machine"])
    for method, row in found["summary"].items():
        own = [r for r in found["runs"] if r["method"] == method]
        results.note(done=len(own))
        seconds = [r["prefill_seconds"] + r["decode_seconds"] for r in own]
        results.add(method=method, **row, seconds=seconds)


def model_folder(paths: list[Path], wheel: Path | None, scratch: Path) -> Path:
    """Return a folder that holds the model; a GGUF file, perhaps in parts, is joined, checked and converted once."""
    if len(paths) == 1 and paths[0].is_dir():
        return paths[0]
    folder = scratch / "model"
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(dir=scratch) as unfinished:
        return _converted(paths, wheel, Path(unfinished)).rename(folder)


def _converted(paths: list[Path], wheel: Path | None, scratch: Path) -> Path:
    gguf = scratch / "gguf" / "model.gguf"
    gguf.parent.mkdir()
    with gguf.open("wb") as out:
        for part in paths:
            out.write(part.read_bytes())
    found = hashlib.sha256(gguf.read_bytes()).hexdigest()
    names = {model.sha256: name for name, model in EMBEDDED.items()}
    if found not in names:
        raise ValueError(
            f"model: expected a GGUF file with sha256 {' or '.join(names)}, got {found}"
        )
    if wheel is not None:
        for file in [wheel] if wheel.is_file() else sorted(wheel.glob("*.whl")):
            with zipfile.ZipFile(file) as packed:
                packed.extractall(scratch / "wheels")
        sys.path.append(str(scratch / "wheels"))
    return _convert(names[found], gguf, scratch / "model")


class MarkedStopwatch(Stopwatch):
    """Marks stages in a profile, each with all that the device does for it."""

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        with record_function(MARK + stage), super().__call__(stage):
            yield
            if torch.cuda.is_available():
                torch.cuda.synchronize()


def device_stages(run: Run, runner: Runner, method: str, prompt: list[int]) -> dict[str, float]:
    """Profile one text, and sum the device's seconds per stage."""
    activities = [ProfilerActivity.CPU, *([] if run.dry else [ProfilerActivity.CUDA])]
    with (
        patch.object(session, "Stopwatch", MarkedStopwatch),
        profile(activities=activities) as seen,
    ):
        runner.write(method, prompt, NEW_DRY if run.dry else NEW_PROFILED)
    return seconds_per_stage(seen.events(), DeviceType.CPU if run.dry else DeviceType.CUDA)


def seconds_per_stage(events: Iterable[Any], device: DeviceType) -> dict[str, float]:
    """Sum the kernels that run on a device while a stage lasts; on a CPU, what operators themselves take."""
    marks = [e for e in events if e.name.startswith(MARK) and e.device_type == DeviceType.CPU]
    marks.sort(key=lambda mark: mark.time_range.start)
    starts = [mark.time_range.start for mark in marks]
    microseconds = Counter({mark.name.removeprefix(MARK): 0.0 for mark in marks})
    for event in events:
        start = event.time_range.start
        at = bisect_right(starts, start) - 1
        # A profile repeats marks on the device's side.
        counts = event.device_type == device and not event.is_user_annotation
        if counts and at >= 0 and start <= marks[at].time_range.end:
            on_cpu = device == DeviceType.CPU
            spent = event.self_cpu_time_total if on_cpu else event.time_range.elapsed_us()
            microseconds[marks[at].name.removeprefix(MARK)] += spent
    return {stage: total * 1e-6 for stage, total in microseconds.items()}


if __name__ == "__main__":
    main()
