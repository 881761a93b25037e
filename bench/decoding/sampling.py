"""Sampled text and batches: how fast with a drafter and without, and what coupling with the noise brings.

    python -m bench.decoding.sampling --json bench/results/sampling_cpu.json [--per-category 1]

The default model in bfloat16, questions as in `specdec bench`, 64 new tokens; batches of four and of eight take twice as
many questions. Methods take turns on the same prompts in one process; run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.progress import track

from bench import ROOT
from specdec import Session, load_drafter, load_target
from specdec.drafters import redrafter
from specdec.evaluate.benchmark import chat_prompts, describe_machine
from specdec.evaluate.questions import read_questions
from specdec.metrics import Metrics
from specdec.model.target import Target
from specdec.pickers import Greedy, Picker, sampler
from specdec.sampling import Sampling
from specdec.session import end_tokens

QUESTIONS = ROOT / "tests/data/questions.jsonl"
NEW = 64
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "T 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "T 0.7": {"temperature": 0.7},
    "T 1.0": {"temperature": 1.0},
}
BATCHES = (1, 4, 8)
DRAFTERS = ("plain", "lookup", "redrafter", "mixed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--per-category", type=int, default=1)
    options = parser.parse_args()
    target = load_target(dtype=torch.bfloat16)
    drafters = {name: load_drafter(name, target) for name in DRAFTERS}
    jobs = list(jobs_of(target, options.per_category))
    rows: dict[tuple[str, int, str, bool], list[dict[str, Any]]] = {}
    for setting, batch, asked in track(jobs, description="texts"):
        for name, coupled in itertools.product(DRAFTERS, (True, False)):
            if not coupled and (
                setting == "greedy" or batch > 1 or name not in ("redrafter", "mixed")
            ):
                continue
            with nullcontext() if coupled else uncoupled():
                row = write(target, drafters[name], asked, SETTINGS[setting])
            rows.setdefault((setting, batch, name, coupled), []).append(row)
    content = {
        "machine": describe_machine(target, "plain"),
        "new_tokens": NEW,
        "rows": [
            {"setting": setting, "batch": batch, "drafter": name, "coupled": coupled, **pool(found)}
            for (setting, batch, name, coupled), found in rows.items()
        ],
    }
    options.json.write_text(json.dumps(content, indent=1) + "\n")


def jobs_of(target: Target, per_category: int) -> Iterator[tuple[str, int, list[list[int]]]]:
    """Give each setting's batches; batches of several rows have neighbours in the list of questions."""
    for batch in BATCHES:
        each = per_category if batch == 1 else 2 * per_category
        questions = read_questions(QUESTIONS, per_category=each)
        prompts = [p.ids for p in chat_prompts(target.tokenizer, questions, turns=1)]
        for at in range(0, len(prompts) - batch + 1, batch):
            for setting in SETTINGS if batch == 1 else ("greedy", "T 0.7"):
                yield setting, batch, prompts[at : at + batch]


def write(
    target: Target, drafter: Any, prompts: list[list[int]], setting: dict[str, Any]
) -> dict[str, Any]:
    """Write texts, the same for all drafters, and tell what it took."""
    picker: Picker = Greedy()
    if setting:
        picker = sampler(Sampling(11, torch.arange(len(prompts)), **setting), target)
    began = time.perf_counter()
    generation = Session(target, drafter).generate(
        prompts,
        max_new_tokens=NEW,
        eos_token_ids=end_tokens(target.model.generation_config),
        picker=picker,
    )
    return {
        "seconds": time.perf_counter() - began,
        "prefill": generation.metrics.prefill_seconds,
        "tokens": sum(map(len, generation.tokens)),
        "metrics": generation.metrics,
    }


@contextmanager
def uncoupled() -> Iterator[None]:
    """Let drafters rank by their own probabilities alone."""
    with patch.object(redrafter, "coupled", lambda log_probs, *_, **__: log_probs):
        yield


def pool(found: list[dict[str, Any]]) -> dict[str, Any]:
    metrics = Metrics()
    for row in found:
        metrics.add(row["metrics"])
    seconds, prefill = (sum(row[name] for row in found) for name in ("seconds", "prefill"))
    tokens = sum(row["tokens"] for row in found)
    return {
        "texts": len(found),
        "new_tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "decode_tokens_per_second": (tokens - metrics_first(found)) / (seconds - prefill),
        "rounds": metrics.rounds,
        "tokens_per_round": metrics.tokens_per_round,
        "nodes_per_round": metrics.nodes_per_round,
        "stage_seconds": metrics.seconds,
        "samples": [row["seconds"] for row in found],
    }


def metrics_first(found: list[dict[str, Any]]) -> int:
    """Count first tokens, which are prefill's."""
    return sum(row["metrics"].new_tokens - sum(row["metrics"].gains) for row in found)


if __name__ == "__main__":
    main()
