"""The command `bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..evaluate.method_names import PLAIN, TRANSFORMERS, TRANSFORMERS_LOOKUP, check_methods
from ..evaluate.questions import read_questions
from ..host.whole_file import check_file, whole_file
from ..sources.embedded import DEFAULT_MODEL
from .options import (
    CostsOption,
    DeviceOption,
    DType,
    DTypeOption,
    ExactOption,
    ModelOption,
    NewTokensOption,
    NodesOption,
    RevisionOption,
    ThreadsOption,
    TrustOption,
    between,
    home,
)
from .terminal import fail


def bench(
    prompts: Annotated[
        Path, typer.Option(help="JSONL file of questions in Spec-Bench's format.", callback=home)
    ],
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: plain, transformers, transformers-lookup, and drafters' names."
        ),
    ] = f"{PLAIN},{TRANSFORMERS},{TRANSFORMERS_LOOKUP},lookup",
    limit: Annotated[
        int | None, typer.Option(help="Most questions in total.", callback=between(1))
    ] = None,
    per_category: Annotated[
        int | None, typer.Option(help="Most questions per category.", callback=between(1))
    ] = None,
    turns: Annotated[int, typer.Option(help="Most turns per question.", callback=between(1))] = 1,
    max_new_tokens: NewTokensOption = 128,
    max_nodes: NodesOption = None,
    costs: CostsOption = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Rows generated at the same time: specdec's methods start the next question when a row ends. "
            "transformers always runs one question at a time.",
            callback=between(1),
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    dtype: DTypeOption = DType.float32,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    exact: ExactOption = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the results of all runs.", callback=home)
    ] = None,
) -> None:
    """Compare the speed of methods on the same prompts, and check that their tokens agree.

    Methods alternate prompt by prompt, unless --batch is given. Exit code 1 if tokens differ beyond the tie rule.
    """
    names = list(dict.fromkeys(name.strip() for name in methods.split(",")))
    check_methods(names)
    if batch is not None and turns > 1:
        raise ValueError(
            f"batch: expected none with {turns} turns, as a turn needs the answer before it, got {batch}"
        )
    if json_file is not None:
        check_file(json_file, "json")
    questions = read_questions(prompts, limit=limit, per_category=per_category)

    from ..costs.table import read_costs
    from ..evaluate.benchmark import chat_prompts, check_questions
    from .compare import compare_methods
    from .loading import ModelChoice

    choice = ModelChoice.of(
        model, revision, trust_remote_code, dtype=dtype, device=device, threads=threads
    )
    table = None if costs is None else read_costs(costs)
    target = choice.target(exact=exact)
    check_questions(target, questions)
    asked = chat_prompts(target.tokenizer, questions, turns)
    count = sum(len(question.turns[:turns]) for question in questions)
    result = compare_methods(
        target, choice, asked, names, max_new_tokens, max_nodes, count, batch, table
    )
    if json_file is not None:
        with whole_file(json_file) as scratch:
            scratch.write_text(json.dumps(result.as_json(), indent=1))
    if not result.lossless:
        fail("answers differ beyond the tie rule", code=1)
