"""Drafting against the plain loop by wall clock, where one thing differs from greedy text of one row in float32 on two threads.

    python -m bench.decoding.one_factor --json bench/results/one_factor.json [--factor T-1.3]

Drafting is not to lose anywhere: each ratio is to be 0.97 at least. Plain and drafted take turns on every prompt, each first
every other time; an interval is a bootstrap over prompts. Nothing else may run. About a quarter of an hour; what a file
holds already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import track

from bench import ROOT
from specdec import Session, load_drafter, load_target
from specdec.drafters import Drafter, Proposals
from specdec.drafters.parts.calibration import Calibration
from specdec.drafters.protocol import Budget
from specdec.evaluate.benchmark import chat_prompts, describe_machine
from specdec.evaluate.questions import read_questions
from specdec.metrics import Metrics
from specdec.model.target import Target
from specdec.pickers import Greedy, Picker, sampler
from specdec.sampling import Sampling
from specdec.session import end_tokens
from specdec.state import State

QUESTIONS = ROOT / "tests/data/questions.jsonl"
NEW = 96
LONG = 3000
SAMPLES = 2000


class Factor(NamedTuple):
    """What differs."""

    dtype: str = "float32"
    threads: int = 2
    batch: int = 1
    temperature: float = 0.0
    prompts: str = "chat"
    drafter: str = "auto"
    model: str = "smollm2-135m-instruct"


FACTORS = {
    "none": Factor(),
    "bfloat16": Factor(dtype="bfloat16"),
    "one thread": Factor(threads=1),
    "batch 4": Factor(batch=4),
    "batch 8": Factor(batch=8),
    "T 0.7": Factor(temperature=0.7),
    "T 1.0": Factor(temperature=1.0),
    "T 1.3": Factor(temperature=1.3),
    "random tokens": Factor(prompts="random"),
    "3,000-token prompts": Factor(prompts="long"),
    "a drafter of noise": Factor(drafter="noise"),
    "no trained drafter": Factor(model="gemma-3-270m"),
}


class Noise(Drafter):
    """Proposes random tokens, and is sure of all of them."""

    name = "noise"
    calibration = Calibration(rate=2.0, share=1.0)

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.generator = torch.Generator().manual_seed(0)

    def draft(self, state: State, budget: Budget) -> Proposals:
        rows, nodes = len(state.rows.host), min(budget.nodes - 1, budget.depth)
        tokens = torch.randint(self.vocabulary, (rows, nodes), generator=self.generator)
        chain = torch.arange(-1, nodes - 1).expand_as(tokens)
        sure = torch.zeros(tokens.shape)
        return Proposals(
            tokens, chain, sure, sure == 0, torch.zeros_like(tokens), spent=budget.spent(self)
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--factor", action="append", choices=FACTORS, help="some of them")
    parser.add_argument("--per-category", type=int, default=1)
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    if options.json.exists():
        rows = json.loads(options.json.read_text())["rows"]
    for name in options.factor or FACTORS:
        if name in rows and not options.factor:
            continue
        factor = FACTORS[name]
        torch.set_num_threads(factor.threads)
        target = load_target(factor.model, dtype=getattr(torch, factor.dtype))
        rows[name] = {"machine": describe_machine(target, "plain")} | measured(
            target, factor, name, options.per_category
        )
        print(name, {k: v for k, v in rows[name].items() if k != "machine"}, flush=True)
        content = {"new_tokens": NEW, "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def measured(target: Target, factor: Factor, name: str, per_category: int) -> dict[str, Any]:
    """Write every batch plainly and with drafts, in turn."""
    drafter = (
        Noise(target.config.vocab_size)
        if factor.drafter == "noise"
        else load_drafter(factor.drafter, target)
    )
    plain = load_drafter("plain", target)
    prompts = list(prompts_of(target, factor, per_category))
    batches = [prompts[i : i + factor.batch] for i in range(0, len(prompts), factor.batch)]
    times: list[tuple[float, float]] = []
    metrics, rested, different = Metrics(), 0, 0
    write(target, drafter, [prompts[0]] * factor.batch, factor, 12)
    for at, asked in enumerate(track(batches, description=name)):
        found: dict[str, Any] = {}
        kinds = {"plain": plain, "drafted": drafter}
        for kind in list(kinds) if at % 2 else reversed(list(kinds)):
            found[kind] = write(target, kinds[kind], asked, factor, NEW)
        times.append((found["plain"][0], found["drafted"][0]))
        different += found["plain"][1].tokens != found["drafted"][1].tokens
        metrics.add(found["drafted"][1].metrics)
        rested += sum(row.rested for row in found["drafted"][1].statistics.rows)
    ratio, low, high = interval(np.array(times))
    return {
        "batches": len(times),
        "ratio": ratio,
        "interval": [low, high],
        "tokens_per_round": metrics.tokens_per_round,
        "nodes_per_round": metrics.nodes_per_round,
        "rested": rested / metrics.rounds,
        "different_texts": different,
    }


def write(
    target: Target, drafter: Drafter, prompts: list[list[int]], factor: Factor, new: int
) -> tuple[float, Any]:
    """Write a batch; return the seconds after prefill, and what was written."""
    picker: Picker = Greedy()
    if factor.temperature:
        streams = torch.arange(len(prompts))
        picker = sampler(Sampling(11, streams, temperature=factor.temperature), target)
    session = Session(target, drafter)
    began = time.perf_counter()
    generation = session.generate(
        prompts,
        max_new_tokens=new,
        eos_token_ids=end_tokens(target.model.generation_config),
        picker=picker,
    )
    spent = time.perf_counter() - began
    return spent - generation.metrics.prefill_seconds, generation


def prompts_of(target: Target, factor: Factor, per_category: int) -> Iterator[list[int]]:
    """Give the questions, or what takes their place."""
    each = per_category if factor.batch == 1 else 2 * per_category
    questions = read_questions(QUESTIONS, per_category=each)
    chats = [prompt.ids for prompt in chat_prompts(target.tokenizer, questions, turns=1)]
    chats = chats[: len(chats) // factor.batch * factor.batch]
    generator = torch.Generator().manual_seed(1)
    for at, chat in enumerate(chats):
        if factor.prompts == "random":
            yield torch.randint(target.config.vocab_size, (64,), generator=generator).tolist()
        elif factor.prompts == "long":
            # Other questions stand before the one that is asked.
            before = [token for other in (*chats[at + 1 :], *chats[:at]) for token in other]
            yield (before * (1 + LONG // len(before)))[: LONG - len(chat)] + chat
        else:
            yield chat


def interval(times: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """Return plain seconds over drafted seconds, and the 95 % interval of a bootstrap over batches."""
    generator = np.random.default_rng(0)
    picks = generator.integers(len(times), size=(SAMPLES, len(times)))
    plain, drafted = times[picks].sum(1).T
    low, high = np.quantile(plain / drafted, (0.025, 0.975))
    return float(times[:, 0].sum() / times[:, 1].sum()), float(low), float(high)


if __name__ == "__main__":
    main()
