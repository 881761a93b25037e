"""Runs a comparison of methods with a progress bar, and prints its tables. Imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count as count_up

from ..costs.table import Costs
from ..evaluate.answers import Prompt
from ..evaluate.benchmark import Benchmark, run_benchmark
from ..evaluate.method_names import PLAIN, TRANSFORMERS
from ..evaluate.methods import Runner
from ..evaluate.questions import Question
from ..evaluate.report import benchmark_tables
from ..host.progress import progress
from ..model.target import Target
from ..session import end_tokens
from .loading import ModelChoice
from .terminal import console


def compare_methods(
    target: Target,
    choice: ModelChoice,
    prompts: Iterable[Prompt],
    methods: list[str],
    max_new_tokens: int,
    max_nodes: int | None,
    count: int = 1,
    batch: int | None = None,
    costs: Costs | None = None,
) -> Benchmark:
    """Run methods on `count` prompts, show the progress and print the result; `batch` as in `run_benchmark`."""
    methods = list(dict.fromkeys([PLAIN, *methods]))
    library = any(method.startswith(TRANSFORMERS) for method in methods)
    runner = Runner(
        target,
        choice.weights() if library else None,
        max_nodes=max_nodes,
        costs=costs,
        eos=end_tokens(target.model.generation_config),
    )
    runs, most = count_up(1), count * (len(methods) + (batch is not None))
    with progress() as show:

        def tell(question: Question, method: str) -> None:
            note = f"{question.category} {question.question_id}: {method}"
            show("runs", next(runs), most, note)

        result = run_benchmark(
            runner,
            prompts,
            methods,
            max_new_tokens=max_new_tokens,
            load_model64=lambda: choice.weights().cpu().double(),
            progress=tell,
            batch=batch,
        )
    for table in benchmark_tables(result)[: None if count > 1 else 2]:
        console.print(table)
    return result
