"""Part (d): whole texts on this GPU, by every method, tokens checked, and where the time goes.

    python bench/gpu_decoding.py --results FOLDER --model FOLDER|FILE.gguf|PART PART [--gguf-wheel WHEEL|FOLDER]

Methods take turns on each question, as in `specdec bench`. A second pass over one question waits for the device at the
end of each stage, so that a stage's time is the device's.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gpu_run import ROOT, Run, results_of, run_options

from specdec import session
from specdec.evaluate.benchmark import Prompt, chat_prompts, run_benchmark
from specdec.evaluate.methods import Runner
from specdec.evaluate.questions import read_questions
from specdec.loading import load_target
from specdec.metrics import Stopwatch
from specdec.models import EMBEDDED, _convert, load_model

METHODS = ["plain", "transformers", "lookup", "redrafter", "kangaroo", "mixed"]
QUESTIONS = ROOT / "tests/data/questions.jsonl"
# What the second pass may take.
STAGES_SECONDS = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, nargs="+", required=True)
    parser.add_argument("--gguf-wheel", type=Path)
    options = run_options(parser)
    run: Run = options.run
    with results_of(run, "decoding") as results, tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(options.model, options.gguf_wheel, Path(scratch))
        dtype = torch.float32 if run.dry else torch.bfloat16
        load = {"dtype": dtype, "device": run.device}
        target = load_target(str(folder), **load)
        stock, _ = load_model(str(folder), **load)
        methods, limit = (["plain", "lookup"], 1) if run.dry else (METHODS, None)
        questions = read_questions(QUESTIONS, per_category=1, limit=limit)
        runner = Runner(
            target,
            stock,
            max_nodes=session.MAX_NODES,
            eos=session.end_tokens(target.model.generation_config),
        )

        def compare(prompts: Iterator[Prompt]) -> dict[str, Any]:
            return run_benchmark(
                runner,
                prompts,
                methods,
                max_new_tokens=8 if run.dry else 64,
                load_model64=lambda: load_model(str(folder), **load)[0].double(),
                progress=lambda question, method: None,
            ).as_json()

        ends = Run(run.id, run.folder, run.ends - STAGES_SECONDS, run.dry)
        found = compare(while_early(ends, chat_prompts(target.tokenizer, questions, 1)))
        results.note(machine=found["machine"])
        for method, row in found["summary"].items():
            seconds = [
                r["prefill_seconds"] + r["decode_seconds"]
                for r in found["runs"]
                if r["method"] == method
            ]
            results.add(method=method, **row, seconds=seconds)
        with device_stages():
            staged = compare(chat_prompts(target.tokenizer, questions[:1], 1))
        results.note(
            device_stages={
                method: row["stage_seconds"] for method, row in staged["summary"].items()
            }
        )


def while_early(run: Run, prompts: Iterator[Prompt]) -> Iterator[Prompt]:
    """Give prompts while there is time; always one."""
    for at, prompt in enumerate(prompts):
        if at and run.late:
            return
        yield prompt


def model_folder(paths: list[Path], wheel: Path | None, scratch: Path) -> Path:
    """Return a folder that holds the model; a GGUF file, perhaps in parts, is joined, checked and converted."""
    if len(paths) == 1 and paths[0].is_dir():
        return paths[0]
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


class DeviceStopwatch(Stopwatch):
    """Waits for the device before and after a stage."""

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        wait_for_device()
        with super().__call__(stage):
            yield
            wait_for_device()


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def device_stages() -> Iterator[None]:
    with patch.object(session, "Stopwatch", DeviceStopwatch):
        yield


if __name__ == "__main__":
    main()
