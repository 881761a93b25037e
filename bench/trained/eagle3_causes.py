"""Why EAGLE-3 stays behind ReDrafter on a small budget of text: one cause changed per training.

    python -m bench.trained.one_budget text --answer-tokens 100000 --folder .training/variants
    python -m bench.trained.eagle3_causes --folder .training/variants --out .training/causes --json bench/results/eagle3_causes.json

Each training reads the shorter half of the conversations of `--folder`, in one thread, and is judged as `bench.trained.judge` judges. A training
with fewer passes reads it twice, in about the same time. Resumes after an interruption.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.decoding.one_factor import NEW, Factor, prompts_of
from bench.trained.judge import PER_CATEGORY, count
from bench.trained.text import HELD_OUT
from specdec import load_target
from specdec.checkpoints import save_drafter
from specdec.drafters.eagle3 import Eagle3Config, join, new_module
from specdec.evaluate.benchmark import describe_machine
from specdec.model.target import Target
from specdec.selftext.conversation import Joined, read_conversations
from specdec.train.begin import copy_final_norm, copy_head, copy_last_layer
from specdec.train.eagle3 import Eagle3Task
from specdec.train.features import Features, collect_features
from specdec.train.loop import Schedule, train
from specdec.train.redrafter import frequent_tokens

NODES = 8
AT_FIRST = {"passes": 7, "epochs": 1, "batch": 2, "learning_rate": 1e-3, "layer": False}
CAUSES: dict[str, dict[str, Any]] = {
    "at first": {},
    "learning rate": {"learning_rate": 4e-3},
    "steps": {"batch": 1},
    "start": {"layer": True},
    "passes": {"passes": 3, "epochs": 2},
    "the last three": {"batch": 1, "layer": True, "passes": 3, "epochs": 2},
}


def main() -> None:
    """Train and judge what a file of results lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="of the text's hidden states")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    target = load_target(dtype=torch.bfloat16)
    features = half_of(target, options.folder)
    rows = {
        name: learn(target, features, AT_FIRST | changed, options.out / name.replace(" ", "-"))
        for name, changed in CAUSES.items()
    }
    judge(features, rows, options.out, options.json)


def half_of(target: Target, folder: Path) -> Features:
    """Return the shorter half of the conversations in a folder of `bench.trained.one_budget`: they lie in order of length."""
    data = [folder / "questions.jsonl", folder / "text.jsonl"]
    read = Joined([read_conversations(path, target.tokenizer) for path in data])[HELD_OUT:]
    whole = collect_features(target, read, folder / "features")
    first = slice(len(whole) // 2)
    return replace(
        whole, starts=whole.starts[first], answers=whole.answers[first], ends=whole.ends[first]
    )


def learn(target: Target, features: Features, how: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train a drafter, unless a folder holds it; return its settings and processor seconds, those of the last run alone."""
    if (kept := out / "cost.json").exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    began = time.process_time()
    ids = frequent_tokens(features, 8192, target.config.vocab_size)
    config = Eagle3Config.beside(target.config, None, passes=how["passes"])
    torch.manual_seed(0)
    model = new_module(config, target.config.vocab_size, ids)
    copy_final_norm(target, model.output_norm)
    copy_head(target, ids, model.output)
    if how["layer"]:
        copy_last_layer(target, model)
    schedule = Schedule(how["epochs"], how["batch"], how["learning_rate"])
    task = Eagle3Task(target, model, features, draft_vocabulary=ids)
    train(
        task,
        out.with_suffix(".run"),
        schedule,
        progress=lambda *done: print(out.name, *done, flush=True),
    )
    save_drafter(out, join(target, config, model, ids), dtype=torch.bfloat16)
    cost = {**how, "seconds": time.process_time() - began}
    kept.write_text(json.dumps(cost) + "\n")
    return cost


def judge(features: Features, rows: dict[str, Any], out: Path, path: Path) -> None:
    """Count tokens per round of all drafters."""
    target = load_target()
    prompts = list(prompts_of(target, Factor(), PER_CATEGORY))
    folders = [out / name.replace(" ", "-") for name in rows]
    found: dict[str, Any] = {folder.name: {} for folder in folders}
    result = {
        "machine": describe_machine(target, "plain"),
        "prompts": len(prompts),
        "max_new_tokens": NEW,
        "nodes": NODES,
        "tokens": int((features.ends - features.starts).sum()),
    }

    def keep() -> None:
        both = {name: row | found[name.replace(" ", "-")] for name, row in rows.items()}
        path.write_text(json.dumps(result | {"causes": both}, indent=1) + "\n")

    count(target, folders, prompts, [NODES], found, keep)


if __name__ == "__main__":
    main()
