"""What text is worth: a short training on equally much of several files, judged on the same unseen questions.

    python -m bench.decoding.text_value --texts old=a.db new=b.db --folder .training/text_value --json bench/results/text_value.json

Per file a ReDrafter learns for one epoch from conversations in random order, as many as hold `--tokens` tokens; then it
drafts for questions that nobody trains on. Goes on after a stop.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers

from bench import ROOT
from specdec import load_target
from specdec.drafters.redrafter import ReDrafterConfig
from specdec.evaluate.benchmark import device_name
from specdec.evaluate.questions import read_questions
from specdec.model.target import Target
from specdec.selftext.conversation import read_records
from specdec.selftext.template import Template
from specdec.train.loop import Schedule
from specdec.train.run import Recipe, train_drafter

QUESTIONS = ROOT / "tests" / "data" / "questions.jsonl"
HELD_OUT = 24


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--texts", nargs="+", required=True, help="NAME=FILE, stores or JSONL")
    parser.add_argument("--tokens", type=int, default=120_000, help="of each, prompts included")
    parser.add_argument("--folder", type=Path, required=True, help="keeps what is unfinished")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    target = load_target(dtype=torch.bfloat16)
    questions = write_questions(target, options.folder / "questions.jsonl")
    found = {}
    for name, file in (text.split("=", 1) for text in options.texts):
        chosen = choose(Path(file), options.folder / f"{name}.jsonl", options.tokens)
        log = learn(target, [questions, options.folder / f"{name}.jsonl"], options.folder / name)
        found[name] = {**chosen, **log[-1]["validation"]}
        print(name, found[name], flush=True)
    result = {
        "device": device_name(target.device),
        "threads": options.threads,
        "dtype": "bfloat16",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "tokens": options.tokens,
        "texts": found,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


def write_questions(target: Target, path: Path) -> Path:
    """Write the prompts that are judged on, as conversations that hold nothing to learn."""
    template = Template.of(target.tokenizer)
    questions = read_questions(QUESTIONS)
    random.Random(0).shuffle(questions)
    with path.open("w") as file:
        for question in questions[:HELD_OUT]:
            prompt = template.prompt([], question.turns[0])
            ids = target.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            file.write(json.dumps({"prompt_ids": ids, "answer_ids": [2]}) + "\n")
    return path


def choose(source: Path, out: Path, tokens: int) -> dict[str, int]:
    """Write conversations in random order until they hold enough tokens; count them."""
    records = [record for record in read_records(source) if record.ids]
    random.Random(1).shuffle(records)
    counts = {"conversations": 0, "tokens": 0, "answer_tokens": 0}
    with out.open("w") as file:
        for record in records:
            if counts["tokens"] >= tokens:
                break
            prompt = len(record.ids) - record.spans[-1]
            line = {"prompt_ids": record.ids[:prompt], "answer_ids": record.ids[prompt:]}
            file.write(json.dumps(line) + "\n")
            counts["conversations"] += 1
            counts["tokens"] += len(record.ids)
            counts["answer_tokens"] += record.answer_tokens
    return counts


def learn(target: Target, data: list[Path], folder: Path) -> list[dict[str, Any]]:
    """Train as the shipped ReDrafter was, for one epoch; return the log."""
    width = target.config.hidden_size
    config = ReDrafterConfig(
        hidden_size=width, exit_dim=2 * width, trained_length=4, draft_length=4, beam_width=4,
        min_prob=0.1, min_step_prob=0.4,
    )  # fmt: skip
    recipe = Recipe(Schedule(epochs=1, learning_rate=2e-3), held_out=HELD_OUT)
    return train_drafter(
        target, config, data, folder / "run", folder / "out", recipe,
        progress=lambda what, done, total, figures: print(folder.name, what, done, total, figures, flush=True),
    )  # fmt: skip


if __name__ == "__main__":
    main()
