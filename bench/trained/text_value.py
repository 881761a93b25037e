"""What text is worth: a short training on equally much of several files, judged on the same unseen questions.

    python -m bench.trained.text_value --texts old=a.db new=b.db --folder .training/text_value --json bench/results/text_value.json

Per file a ReDrafter learns for one epoch from conversations in random order, as many as hold `--tokens` tokens; then it
drafts for questions that nobody trains on. Goes on after a stop.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.trained.text import HELD_OUT, choose, write_questions
from specdec import load_target
from specdec.drafters.redrafter import ReDrafterConfig
from specdec.evaluate.benchmark import device_name
from specdec.model.target import Target
from specdec.train.loop import Schedule
from specdec.train.run import Recipe, train_drafter


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
        chosen = choose(Path(file), options.folder / f"{name}.jsonl", tokens=options.tokens)
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
