"""The benchmark: methods take turns on every prompt, and every text is checked."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from ..host.processor import processor
from ..metrics import CTAR_WIDTHS, Metrics
from ..model.target import Target
from ..sources.tokenizing import chat_ids, check_chat_template
from .method_names import PLAIN, TRANSFORMERS
from .methods import Runner
from .questions import Question
from .replay import SAME, TIE_RATE, Verdict, judge
from .runs import Run, decode_speedup, efficiency, speed

WARMUP_TOKENS = 8


@dataclass(slots=True)
class Benchmark:
    """Everything a benchmark run measured."""

    runs: list[Run]
    summary: dict[str, dict[str, Any]]
    machine: dict[str, Any]

    @property
    def lossless(self) -> bool:
        """Whether no answer differs beyond the tie rule."""
        return all(row["lossless"] for row in self.summary.values())

    def as_json(self) -> dict[str, Any]:
        """Return what is saved."""
        return asdict(self)


class Prompt(NamedTuple):
    """One prompt of a benchmark."""

    question: Question
    turn: int
    ids: list[int]
    answer: Callable[[list[int]], None]
    """Told the reference's answer, before the next prompt is asked for."""


def run_benchmark(
    runner: Runner,
    prompts: Iterable[Prompt],
    methods: list[str],
    *,
    max_new_tokens: int,
    load_model64: Callable[[], PreTrainedModel],
    progress: Callable[[Question, str], None],
) -> Benchmark:
    """Run methods alternately on every prompt.

    Args:
        runner: runs one method on one prompt.
        prompts: from `chat_prompts`.
        methods: names; the plain loop joins them where it is missing.
        max_new_tokens: most new tokens per prompt.
        load_model64: gives the float64 model for replays, called when the first text differs.
        progress: told before each run.
    """
    methods = methods if PLAIN in methods else [PLAIN, *methods]
    dtype = runner.target.dtype
    full = dtype in (torch.float32, torch.float64)
    reference = TRANSFORMERS if full and TRANSFORMERS in methods else PLAIN
    model64: PreTrainedModel | None = None
    runs: list[Run] = []
    pooled = {method: Metrics() for method in methods}

    for at, (question, turn, prompt, answer) in enumerate(prompts):
        # Another method begins each time, so that none always has the warm or the cold machine.
        order = methods[at % len(methods) :] + methods[: at % len(methods)]
        if at == 0:
            for method in order:
                runner.write(method, prompt, min(WARMUP_TOKENS, max_new_tokens))
        written = {}
        for method in order:
            progress(question, method)
            written[method] = runner.write(method, prompt, max_new_tokens)
        expected = written[reference].tokens
        answer(expected)
        for method in methods:
            w = written[method]
            verdict = SAME
            ours = w.metrics is not None
            if ours and runner.target.exact and w.tokens != written[PLAIN].tokens:
                verdict = Verdict(0, 1, 0.0)  # to the bit: no tie excuses a difference
            elif w.tokens != expected:
                model64 = model64 or load_model64()
                verdict = judge(model64, prompt, expected, w.tokens, dtype)
            metrics = w.metrics
            if metrics is not None:
                pooled[method].add(metrics)
            runs.append(
                Run(
                    method=method,
                    question_id=question.question_id,
                    turn=turn,
                    category=question.category,
                    new_tokens=len(w.tokens),
                    prefill_seconds=w.prefill_seconds,
                    decode_seconds=w.decode_seconds,
                    rounds=metrics.rounds if metrics else None,
                    tokens_per_round=metrics.tokens_per_round if metrics else None,
                    ctar=[metrics.ctar(width) for width in CTAR_WIDTHS] if metrics else None,
                    nodes_per_round=metrics.nodes_per_round if metrics else None,
                    identical=w.tokens == expected,
                    ties=verdict.ties,
                    errors=verdict.errors,
                    margin=verdict.margin,
                    seconds=dict(metrics.seconds) if metrics else {},
                )
            )
    summary = {m: _summarize(m, runs, pooled[m], full=full) for m in methods}
    return Benchmark(runs, summary, describe_machine(runner.target, reference))


def check_questions(target: Target, questions: list[Question]) -> None:
    """Raise ValueError for a first turn that the model cannot take, before anything is run."""
    check_chat_template(target.tokenizer)
    for prompt in chat_prompts(target.tokenizer, questions, turns=1):
        if len(prompt.ids) >= target.position_limit:
            raise ValueError(
                f"prompts: expected fewer tokens than the model's {target.position_limit} positions, "
                f"got {len(prompt.ids)} in question {prompt.question.question_id}"
            )


def chat_prompts(tokenizer: Any, questions: list[Question], turns: int) -> Iterator[Prompt]:
    """Give the first turns of each question in the model's chat template, each after the answer to the last."""
    for question in questions:
        messages: list[dict[str, str]] = []

        def answer(tokens: list[int], messages: list[dict[str, str]] = messages) -> None:
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            messages.append({"role": "assistant", "content": text})

        for turn, text in enumerate(question.turns[:turns]):
            messages.append({"role": "user", "content": text})
            yield Prompt(question, turn, chat_ids(tokenizer, messages), answer)


def _summarize(method: str, runs: list[Run], metrics: Metrics, *, full: bool) -> dict[str, Any]:
    own, plain, library = (
        [run for run in runs if run.method == m] for m in (method, PLAIN, TRANSFORMERS)
    )
    reached = None if method == PLAIN else efficiency(own, plain)
    tokens, ties = sum(r.new_tokens for r in own), sum(r.ties for r in own)

    def speedup(base: str, category: str | None = None) -> float | None:
        ours, theirs = (
            [r for r in runs if r.method == m and category in (None, r.category)]
            for m in (method, base)
        )
        return speed(ours) / speed(theirs) if theirs else None

    known = bool(metrics.gains)
    return {
        "tokens_per_second": speed(own),
        "speedup_vs_transformers": speedup(TRANSFORMERS),
        "speedup_vs_plain": speedup(PLAIN),
        "decode_speedup_vs_transformers": decode_speedup(own, library),
        "decode_speedup_vs_plain": decode_speedup(own, plain),
        "efficiency": asdict(reached) if reached else None,
        "tokens_per_round": metrics.tokens_per_round if known else None,
        "ctar": [metrics.ctar(width) for width in CTAR_WIDTHS] if known else None,
        "nodes_per_round": metrics.nodes_per_round if known else None,
        "identical": sum(r.identical for r in own),
        "answers": len(own),
        "new_tokens": tokens,
        "ties": ties,
        "errors": sum(r.errors for r in own),
        "largest_margin": max(r.margin for r in own),
        # In half precision the library's own text is no sharp reference: its differences are shown, not judged.
        "lossless": not any(r.errors for r in own if full or r.rounds is not None)
        and (not full or ties <= max(1.0, TIE_RATE * tokens)),
        "stage_seconds": metrics.seconds,
        "categories": {
            category: {
                "tokens_per_second": speed([r for r in own if r.category == category]),
                "speedup_vs_transformers": speedup(TRANSFORMERS, category),
                "speedup_vs_plain": speedup(PLAIN, category),
            }
            for category in dict.fromkeys(r.category for r in own)
        },
    }


def describe_machine(target: Target, reference: str) -> dict[str, Any]:
    """Say what a benchmark ran on, and which method's text it took for the right one."""
    device = target.device
    return {
        "device": device_name(device),
        "dtype": str(target.dtype).removeprefix("torch."),
        "exact": target.exact,
        "reference": reference,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def device_name(device: torch.device) -> str:
    """Name a device as the tables of results do."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = f", {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else ""
    return f"{device.type} ({processor()}{capability})"
