"""Part four: whole texts by the default model, by every method, tokens checked, and where the time goes; a row per text.

Methods take turns on each question, as in `specdec bench`. The library's fastest way, a static cache and compiled passes,
comes last: compiling may take longer than there is time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, StaticCache

from bench import ROOT
from bench.gpu.jobs.stages import device_stages
from bench.gpu.model import model_folder
from bench.gpu.run import Job, Row, Run
from specdec import session
from specdec.evaluate.benchmark import chat_prompts
from specdec.evaluate.method_names import PLAIN, TRANSFORMERS
from specdec.evaluate.methods import Runner
from specdec.evaluate.questions import read_questions
from specdec.evaluate.replay import SAME, judge
from specdec.load import load_target
from specdec.metrics import Metrics
from specdec.sources.models import load_model

METHODS = (PLAIN, TRANSFORMERS, "mixed", "redrafter", "lookup", "kangaroo")
METHODS_DRY = (PLAIN, TRANSFORMERS, "lookup")
STATIC = "transformers, static cache, compiled"
QUESTIONS = ROOT / "tests/data/questions.jsonl"
NEW, NEW_DRY, NEW_PROFILED = 96, 8, 24
# More than any question and its answer take.
STATIC_SLOTS = 2048


class Loaded(NamedTuple):
    """The model as every method wants it."""

    runner: Runner
    folder: Path
    prompts: dict[str, list[int]]
    """By question."""
    load: dict[str, Any]


def jobs(run: Run) -> list[Job]:
    """List the questions; `unpack` only makes the model's folder."""
    assert run.store is not None
    if run.group == "unpack":
        return [Job("unpack", partial(unpack, run))]
    questions = read_questions(QUESTIONS, per_category=1, limit=1 if run.dry else None)
    names = [f"question {question.question_id}" for question in questions]
    methods = METHODS_DRY if run.dry else METHODS
    return [
        Job("warm up", partial(warm, run, methods, names)),
        *(Job(name, partial(write_texts, run, methods, name)) for name in names[:6]),
        *(Job(f"profile {m}", partial(profile, run, m, names[0])) for m in methods if m != TRANSFORMERS),
        *([] if run.dry else [Job(STATIC, partial(write_static, run, names))]),
        *(Job(name, partial(write_texts, run, methods, name)) for name in names[6:]),
    ]  # fmt: skip


def unpack(run: Run) -> Iterator[Row]:
    assert run.store is not None
    model_folder(run.store)
    yield from ()


@cache
def loaded(store: Path, dry: bool) -> Loaded:
    """Load the model for our methods, and as the library loads it."""
    folder = model_folder(store)
    load: dict[str, Any] = {
        "dtype": torch.float32 if dry else torch.bfloat16,
        "device": "cpu" if dry else "cuda",
    }
    target = load_target(str(folder), **load)
    stock, _ = load_model(str(folder), **load)
    eos = session.end_tokens(target.model.generation_config)
    questions = read_questions(QUESTIONS, per_category=1)
    prompts = {
        f"question {prompt.question.question_id}": prompt.ids
        for prompt in chat_prompts(target.tokenizer, questions, 1)
    }
    runner = Runner(target, stock, eos=eos)
    return Loaded(runner, folder, prompts, load)


@cache
def exact_model(store: Path, dry: bool) -> PreTrainedModel:
    at = loaded(store, dry)
    return load_model(str(at.folder), **at.load)[0].double()


def of_run(run: Run) -> Loaded:
    assert run.store is not None
    return loaded(run.store, run.dry)


def most(run: Run) -> int:
    return NEW_DRY if run.dry else NEW


def warm(run: Run, methods: tuple[str, ...], names: list[str]) -> Iterator[Row]:
    """Let every method write whole texts: what is compiled depends on a cache's slots, and these on the prompt's length."""
    at = of_run(run)
    by_length = sorted((at.prompts[name] for name in names), key=len)
    for place in sorted({0, len(by_length) // 2, len(by_length) - 1}):
        for method in methods:
            if not run.late:
                at.runner.write(method, by_length[place], most(run))
    yield {"kind": "warm"}


def write_texts(run: Run, methods: tuple[str, ...], name: str) -> Iterator[Row]:
    """Let every method write one text; the first one is the plain loop's, which the others are compared with."""
    at = of_run(run)
    prompt = at.prompts[name]
    expected: list[int] = []
    for method in methods:
        written = at.runner.write(method, prompt, most(run))
        expected = written.tokens if method == PLAIN else expected
        yield judged(run, method, name, expected, written.tokens) | {
            "prefill_seconds": written.prefill_seconds,
            "decode_seconds": written.decode_seconds,
            "tokens_per_round": written.metrics and written.metrics.tokens_per_round,
            "rounds": written.metrics and written.metrics.rounds,
            "host_stages": dict(written.metrics.seconds) if written.metrics else {},
        }


def judged(run: Run, method: str, name: str, expected: list[int], tokens: list[int]) -> Row:
    """Compare a text with plain's; where they part, the float64 model says whether it is a tie."""
    at = of_run(run)
    verdict = SAME
    if tokens != expected:
        assert run.store is not None
        model64 = exact_model(run.store, run.dry)
        verdict = judge(model64, at.prompts[name], expected, tokens, at.load["dtype"])
    return {
        "kind": "text", "method": method, "question": name, "new_tokens": len(tokens),
        "identical": tokens == expected, **verdict._asdict(),
    }  # fmt: skip


def profile(run: Run, method: str, name: str) -> Iterator[Row]:
    """Tell what the device does in a round of each stage."""
    at = of_run(run)
    new = NEW_DRY if run.dry else NEW_PROFILED
    rounds: list[int] = []

    def write(metrics: Metrics) -> None:
        at.runner.write(method, at.prompts[name], new, metrics)
        rounds.append(metrics.rounds)

    stages, launches = device_stages(run.dry, write)
    per_round = {k: s / max(1, rounds[0]) for k, s in stages.items() if k != "prefill"}
    total = sum(launches[stage] for stage in per_round) / max(1, rounds[0])
    yield {
        "kind": "profile",
        "method": method,
        "device_stages": per_round,
        "launches_per_round": total,
    }


@torch.inference_mode()
def write_static(run: Run, names: list[str]) -> Iterator[Row]:
    """Let the library write with a static cache and compiled passes, every text twice: the first compiles."""
    at = of_run(run)
    stock, eos = at.runner.stock, at.runner.eos
    assert stock is not None
    slots = StaticCache(config=stock.config, max_cache_len=STATIC_SLOTS)
    for at_name, name in enumerate(names):
        prompt = torch.tensor([at.prompts[name]], device=stock.device)
        expected = at.runner.write(PLAIN, at.prompts[name], most(run)).tokens
        for _ in range(2 if at_name == 0 else 1):
            if run.late:
                return
            slots.reset()
            torch.cuda.synchronize()
            began = time.perf_counter()
            out = stock.generate(
                prompt, attention_mask=torch.ones_like(prompt), past_key_values=slots,
                max_new_tokens=most(run), do_sample=False, eos_token_id=eos, pad_token_id=eos[0],
            )  # fmt: skip
            torch.cuda.synchronize()
            seconds = time.perf_counter() - began
        tokens = out[0, prompt.shape[1] :].tolist()
        yield judged(run, STATIC, name, expected, tokens) | {"seconds": seconds}
