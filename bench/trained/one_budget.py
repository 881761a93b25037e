"""Train one drafter of the default model; the budget of text is the same for all methods.

    python -m bench.trained.one_budget text --folder .training/one_budget
    python -m bench.trained.one_budget eagle3 --folder .training/one_budget
    python -m bench.trained.one_budget kangaroo-mlp --answer-tokens 100000 --folder .training/variants

`text` chooses the conversations and collects the hidden states that all trainings read. A training runs in one thread and
resumes after an interruption. The drafter is in FOLDER/METHOD, its cost in FOLDER/METHOD.json. `bench.trained.judge` measures
the drafters.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench import ROOT
from bench.trained.text import HELD_OUT, choose, write_questions
from specdec import load_target
from specdec.drafters.eagle3 import Eagle3Config
from specdec.drafters.kangaroo import KangarooConfig
from specdec.drafters.medusa import MedusaConfig
from specdec.drafters.redrafter import ReDrafterConfig
from specdec.model.target import Target
from specdec.selftext.conversation import Joined, read_conversations
from specdec.train.features import collect_features
from specdec.train.loop import Schedule
from specdec.train.run import Recipe, train_drafter

STORE = ROOT / "bench" / "training" / "self_text.db"
EXIT_LAYER = 5
"""Of the shipped Kangaroo."""
EPOCHS = 2


def recipes(target: Target) -> dict[str, tuple[Any, Schedule]]:
    """Return per method the default shape of `specdec train`, and a schedule."""
    width, heads = target.config.hidden_size, target.config.num_attention_heads
    kangaroo = KangarooConfig(
        hidden_size=width, heads=heads, kv_heads=heads, head_dim=width // heads, exit_layer=EXIT_LAYER
    )  # fmt: skip
    by_position = Schedule(epochs=EPOCHS, batch=256, learning_rate=2e-3)
    by_text = Schedule(epochs=EPOCHS, batch=2, learning_rate=1e-3)
    variants = {
        "kangaroo": kangaroo,
        "kangaroo-own-head": replace(kangaroo, own_head=True),
        "kangaroo-layer": replace(kangaroo, adapter="layer", mlp_size=8 * width // 3),
        "kangaroo-mlp": replace(kangaroo, adapter="mlp", own_head=True),
        "kangaroo-none": replace(kangaroo, adapter="none"),
    }
    return {
        "redrafter": (
            ReDrafterConfig(hidden_size=width, exit_dim=2 * width, trained_length=5, draft_length=5),
            by_position,
        ),
        "medusa": (MedusaConfig(hidden_size=width, output="projected"), by_position),
        # In equal minutes, three passes and more epochs teach more than seven passes (`eagle3_causes`).
        "eagle3": (
            Eagle3Config.beside(target.config, None, passes=3),
            replace(by_text, epochs=2 * EPOCHS, batch=1),
        ),
        **{name: (config, replace(by_text, learning_rate=1e-2)) for name, config in variants.items()},
    }  # fmt: skip


def main() -> None:
    """Choose text, or train a drafter."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method")
    parser.add_argument("--answer-tokens", type=int, default=200_000)
    parser.add_argument(
        "--folder", type=Path, required=True, help="of features, training states and drafters"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    target = load_target(dtype=torch.bfloat16)
    data = [folder / "questions.jsonl", folder / "text.jsonl"]
    spent = Spent(folder / f"{options.method}.json")
    if options.method == "text":
        write_questions(target, data[0])
        counts = choose(STORE, data[1], answer_tokens=options.answer_tokens)
        read = Joined([read_conversations(path, target.tokenizer) for path in data])[HELD_OUT:]
        layers = sorted({EXIT_LAYER, *(Eagle3Config.beside(target.config, None).layers or ())})
        collect_features(
            target, read, folder / "features", exit_layers=layers,
            progress=lambda done: spent.tell("reading", done, len(read), {}),
        )  # fmt: skip
        spent.keep(counts)
        return
    if options.method not in (known := recipes(target)):
        parser.error(f"method: expected text, {', '.join(known)}, got {options.method!r}")
    config, schedule = known[options.method]
    train_drafter(
        target, config, data, folder / f"{options.method}.run", folder / options.method,
        Recipe(schedule, held_out=HELD_OUT), features=folder / "features", progress=spent.tell,
    )  # fmt: skip
    spent.keep({})


class Spent:
    """Processor time and peak memory of a training, over all its runs."""

    def __init__(self, path: Path) -> None:
        """Read what earlier runs wrote to a file."""
        self.path = path
        self.before = json.loads(path.read_text())["seconds"] if path.exists() else 0.0

    def tell(self, what: str, done: int, total: int, figures: dict[str, float]) -> None:
        """Print the progress and save the seconds."""
        print(what, done, total, {k: round(v, 3) for k, v in figures.items()}, flush=True)
        self.keep({})

    def keep(self, more: dict[str, int]) -> None:
        """Save processor seconds and the peak memory of this process."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds = self.before + time.process_time()
        self.path.write_text(json.dumps({"seconds": seconds, "peak_bytes": peak, **more}) + "\n")


if __name__ == "__main__":
    main()
