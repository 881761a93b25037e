"""The second model's drafters, compared on questions that they did not learn from; `make second-model` trains them.

    python -m bench.decoding.second_model --drafters FOLDER --json FILE [--no-times]

FOLDER holds `redrafter` and `kangaroo` as `specdec train` left them. The ReDrafter also runs without its draft
vocabulary: the same weights, read through the whole head of the target. In float32, so that every method writes the
same text and only what is guessed of it differs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from bench import ROOT
from specdec.checkpoints import save_drafter
from specdec.drafters import load_drafter
from specdec.drafters.redrafter import ReDrafter, ReDrafterModel
from specdec.evaluate.answers import Prompt
from specdec.evaluate.benchmark import Benchmark, chat_prompts, run_benchmark
from specdec.evaluate.method_names import PLAIN, TRANSFORMERS
from specdec.evaluate.methods import Runner
from specdec.evaluate.questions import read_questions
from specdec.load import load_target
from specdec.model.target import Target
from specdec.session import end_tokens
from specdec.sources.models import load_model
from specdec.train.run import REPORT

MODEL = "gemma-3-270m"
QUESTIONS = ROOT / "tests/data/questions.jsonl"
NEW_TOKENS = 64
COUNTS = ("tokens_per_round", "ctar", "nodes_per_round", "identical", "answers", "new_tokens", "ties", "errors")  # fmt: skip
TIMES = ("tokens_per_second", "speedup_vs_plain", "speedup_vs_transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drafters", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument(
        "--no-times",
        action="store_true",
        help="Others use this machine too, or did while the drafters were trained.",
    )
    options = parser.parse_args()
    target = load_target(MODEL)
    held = drop_draft_vocabulary(target, options.drafters)
    redrafter, kangaroo = options.drafters / "redrafter", options.drafters / "kangaroo"
    methods = {
        PLAIN: PLAIN,
        TRANSFORMERS: TRANSFORMERS,
        "lookup": "lookup",
        "redrafter": str(redrafter),
        "redrafter, whole head": str(options.drafters / "whole_head"),
        "kangaroo": str(kangaroo),
        "redrafter and lookup": f"{redrafter}+lookup",
    }
    texts: list[list[int]] = []
    found = compare(target, list(methods.values()), texts)
    written = torch.tensor([token for text in texts for token in text])
    result = {
        "model": MODEL,
        "machine": found.machine,
        "training": {
            folder.name: training(folder, times=not options.no_times)
            for folder in (redrafter, kangaroo)
        },
        "vocabulary": {
            "all": target.config.vocab_size,
            "draft": len(held),
            "bytes_per_token": target.config.hidden_size * target.dtype.itemsize,
            "share_of_text": float(torch.isin(written, held).double().mean()),
        },
        "methods": {
            label: figures(found, method, times=not options.no_times)
            for label, method in methods.items()
        },
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


def drop_draft_vocabulary(target: Target, folder: Path) -> torch.Tensor:
    """Save the ReDrafter once more, able to draft every token; return the ids it could draft before."""
    drafter = load_drafter(str(folder / "redrafter"), target)
    assert isinstance(drafter, ReDrafter)
    held = drafter.model.draft_vocabulary
    assert held is not None
    weights = drafter.model.state_dict()
    del weights["draft_vocabulary"]
    model = ReDrafterModel(drafter.config, target.config.vocab_size)
    model.load_state_dict(weights)
    save_drafter(folder / "whole_head", ReDrafter(target, model), dtype=torch.bfloat16)
    return held


def compare(target: Target, methods: list[str], texts: list[list[int]]) -> Benchmark:
    """Run methods on one question of each category; what the reference writes is added to `texts`."""
    questions = read_questions(QUESTIONS, per_category=1)

    def noted() -> Iterator[Prompt]:
        for prompt in chat_prompts(target.tokenizer, questions, 1):

            def answer(tokens: list[int], prompt: Prompt = prompt) -> None:
                texts.append(tokens)
                prompt.answer(tokens)

            yield prompt._replace(answer=answer)

    stock = load_model(MODEL)[0]
    ends = end_tokens(target.model.generation_config)
    runner = Runner(target, stock, eos=ends)
    with Progress() as bar:
        task = bar.add_task("", total=len(questions) * len(methods))
        return run_benchmark(
            runner,
            noted(),
            methods,
            max_new_tokens=NEW_TOKENS,
            load_model64=lambda: load_model(MODEL)[0].double(),
            progress=lambda question, method: bar.update(
                task, advance=1, description=f"{question.category}: {method}"
            ),
        )


def figures(found: Benchmark, method: str, *, times: bool) -> dict[str, Any]:
    """Take what is told of a method out of a benchmark."""
    summary = found.summary[method]
    told = {name: summary[name] for name in COUNTS}
    if times:
        rounds = sum(run.rounds or 0 for run in found.runs if run.method == method)
        stages = {stage: 1e3 * s / rounds for stage, s in summary["stage_seconds"].items()}
        told |= {name: summary[name] for name in TIMES} | {"ms_per_round": stages}
    return told


def training(folder: Path, *, times: bool) -> dict[str, Any]:
    report = json.loads((folder / REPORT).read_text())
    return {name: x for name, x in report.items() if times or not name.startswith("seconds")}


if __name__ == "__main__":
    main()
