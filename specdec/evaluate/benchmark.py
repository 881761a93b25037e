"""The benchmark: runs methods on the same prompts and checks every text."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from ..host.processor import processor
from ..metrics import CTAR_WIDTHS, Metrics
from ..model.target import Target
from ..sources.tokenizing import chat_ids, check_chat_template
from .answers import Progress, Prompt, as_lists, taking_turns
from .method_names import PLAIN, TRANSFORMERS
from .methods import Runner
from .questions import Question
from .replay import SAME, TIE_RATE, Verdict, judge
from .runs import Run, decode_speedup, efficiency, speed


@dataclass(slots=True)
class Benchmark:
    """The results of a benchmark."""

    runs: list[Run]
    summary: dict[str, dict[str, Any]]
    machine: dict[str, Any]

    @property
    def lossless(self) -> bool:
        """Whether no answer differs beyond the tie rule."""
        return all(row["lossless"] for row in self.summary.values())

    def as_json(self) -> dict[str, Any]:
        """Return the results as JSON data."""
        return asdict(self)


def run_benchmark(
    runner: Runner,
    prompts: Iterable[Prompt],
    methods: list[str],
    *,
    max_new_tokens: int,
    load_model64: Callable[[], PreTrainedModel],
    progress: Progress,
    batch: int | None = None,
) -> Benchmark:
    """Run methods on all prompts, alternating prompt by prompt, or specdec's methods on one list.

    Args:
        runner: runs one method on one prompt.
        prompts: from `chat_prompts`.
        methods: names of methods; the plain loop is added if missing.
        max_new_tokens: most new tokens per prompt.
        load_model64: returns the float64 model for replays; called when the first text differs.
        progress: called before each run; for a list, when each of its texts ends.
        batch: most rows generated at the same time of a list of all prompts, by each specdec method. Texts are then
            compared with the plain loop's for each prompt alone, a text's times are an equal share of its list's, and
            no prompt may need another's answer. None alternates methods prompt by prompt.
    """
    methods = methods if PLAIN in methods else [PLAIN, *methods]
    dtype = runner.target.dtype
    full = dtype in (torch.float32, torch.float64)
    reference = TRANSFORMERS if full and TRANSFORMERS in methods and batch is None else PLAIN
    model64: PreTrainedModel | None = None
    runs: list[Run] = []
    pooled = {method: Metrics() for method in methods}

    answers = (
        taking_turns(runner, prompts, methods, reference, max_new_tokens, progress)
        if batch is None
        else as_lists(runner, prompts, methods, batch, max_new_tokens, progress)
    )
    for (question, turn, prompt, _), written, plain, expected in answers:
        for method in methods:
            w = written[method]
            verdict = SAME
            ours = w.metrics is not None
            if ours and runner.target.exact and w.tokens != plain:
                verdict = Verdict(0, 1, 0.0)  # exact mode: a tie does not excuse a difference
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
    if batch is not None:
        for row in summary.values():
            row["categories"] = {}  # a list has one time
    machine = describe_machine(runner.target, reference) | {"batch": batch}
    return Benchmark(runs, summary, machine)


def check_questions(target: Target, questions: list[Question]) -> None:
    """Raise ValueError for a first turn that does not fit the model's positions."""
    check_chat_template(target.tokenizer)
    for prompt in chat_prompts(target.tokenizer, questions, turns=1):
        if len(prompt.ids) >= target.position_limit:
            raise ValueError(
                f"prompts: expected fewer tokens than the model's {target.position_limit} positions, "
                f"got {len(prompt.ids)} in question {prompt.question.question_id}"
            )


def chat_prompts(tokenizer: Any, questions: list[Question], turns: int) -> Iterator[Prompt]:
    """Yield the first `turns` turns of each question in the model's chat template; a turn includes earlier answers."""
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
        # In half precision transformers' text is no exact reference: its differences are shown, not judged.
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
    """Return the machine and software of a benchmark, and its reference method."""
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
    """Return a device's name as in result tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = f", {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else ""
    return f"{device.type} ({processor()}{capability})"
