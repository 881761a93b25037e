"""The command `calibrate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..drafters import check_drafter_name
from ..evaluate.questions import read_questions
from ..host.progress import progress
from ..host.whole_file import check_file, whole_file
from ..sources.embedded import DEFAULT_MODEL
from .options import (
    CostsOption,
    DeviceOption,
    DType,
    DTypeOption,
    ModelOption,
    NewTokensOption,
    RevisionOption,
    ThreadsOption,
    TrustOption,
    between,
    home,
)
from .terminal import console


def calibrate(
    drafter: Annotated[
        str, typer.Argument(help="A method's name or a checkpoint folder; not a union of drafters.")
    ],
    prompts: Annotated[
        Path, typer.Option(help="JSONL file of questions in Spec-Bench's format.", callback=home)
    ],
    per_category: Annotated[
        int | None, typer.Option(help="Most questions per category.", callback=between(1))
    ] = None,
    max_new_tokens: NewTokensOption = 96,
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    dtype: DTypeOption = DType.float32,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    costs: CostsOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the calibration.", callback=home)
    ] = None,
) -> None:
    """Measure how well a drafter's scores predict acceptance; for a checkpoint, save the result in its folder."""
    drafter = str(home(drafter))
    check_drafter_name(drafter)
    folder = Path(drafter)
    kept = folder.is_dir()
    if not kept and ("+" in drafter or drafter in ("auto", "best", "mixed", "plain")):
        raise ValueError(f"drafter: expected a single drafter, got {drafter!r}")
    if json_file is not None:
        check_file(json_file, "json")
    questions = read_questions(prompts, per_category=per_category)

    from ..costs.measure import costs_of
    from ..costs.table import read_costs
    from ..drafters import load_drafter
    from ..drafters.parts.calibration import CALIBRATION
    from ..evaluate.benchmark import chat_prompts, check_questions
    from ..evaluate.calibrate import calibrate as measured
    from .loading import ModelChoice

    choice = ModelChoice.of(
        model, revision, trust_remote_code, dtype=dtype, device=device, threads=threads
    )
    given = None if costs is None else read_costs(costs)
    target = choice.target()
    check_questions(target, questions)
    asked = [prompt.ids for prompt in chat_prompts(target.tokenizer, questions, turns=1)]
    loaded = load_drafter(drafter, target)
    before, table = loaded.calibration, given or costs_of(target, loaded)
    assert before is not None
    with progress() as show:
        found = measured(target, drafter, asked, table, max_new_tokens=max_new_tokens, tell=show)
    shown = Table(title=f"{drafter}, {len(asked)} texts", title_justify="left")
    for column in ("", "measured", "so far"):
        shown.add_column(column, justify="right" if column else "left")
    for name in ("rate", "share", "step_gain"):
        shown.add_row(name, f"{getattr(found, name):.3f}", f"{getattr(before, name):.3f}")
    console.print(shown)
    text = json.dumps(asdict(found), indent=1) + "\n"
    for path in ([folder / CALIBRATION] if kept else []) + ([json_file] if json_file else []):
        with whole_file(path) as scratch:
            scratch.write_text(text)
        console.print(f"written to {path}", markup=False, emoji=False)
