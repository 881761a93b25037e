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
        Path, typer.Option(help="Questions in Spec-Bench's JSONL format.", callback=home)
    ],
    methods: Annotated[
        str, typer.Option(help="plain, transformers, transformers-lookup and drafters, by commas.")
    ] = f"{PLAIN},{TRANSFORMERS},{TRANSFORMERS_LOOKUP},lookup",
    limit: Annotated[int | None, typer.Option(help="Most questions.", callback=between(1))] = None,
    per_category: Annotated[
        int | None, typer.Option(help="Most questions of a category.", callback=between(1))
    ] = None,
    turns: Annotated[int, typer.Option(help="Most turns of a question.", callback=between(1))] = 1,
    max_new_tokens: NewTokensOption = 128,
    max_nodes: NodesOption = None,
    costs: CostsOption = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Texts written at once: each method of ours writes all questions as one list, in which the next begins "
            "as one ends. transformers writes them one by one.",
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
        Path | None, typer.Option("--json", help="Where to save every run.", callback=home)
    ] = None,
) -> None:
    """Compare methods on the same prompts, alternating or in lists, tokens always checked; exit code 1 if any differ."""
    names = list(dict.fromkeys(name.strip() for name in methods.split(",")))
    check_methods(names)
    if batch is not None and turns > 1:
        raise ValueError(
            f"batch: expected none with {turns} turns, which wait for answers, got {batch}"
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
