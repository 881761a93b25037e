"""A training from text files to a drafter in a folder; killed at any point, it goes on where it was."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from ..checkpoints import TargetFacts, save_drafter
from ..drafters.methods import drafter_file, method_of, train_file
from ..host.whole_file import whole_file
from ..model.target import Target
from ..selftext.conversation import Joined, check_conversations, read_conversations
from .features import collect_features
from .loop import Schedule, train
from .redrafter import frequent_tokens
from .validate import acceptance

REPORT = "training.json"
# Told what is going on, how far, and the latest figures.
Progress = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is common to the training of any drafter."""

    schedule: Schedule
    draft_vocabulary: int | None = 8192
    """Vd, the most frequent tokens; None for all."""
    held_out: int = 24
    """The first conversations of the data, which are only validated on."""
    labels: str = "distribution"
    """What ReDrafter and Medusa learn; see `ReDrafterTask`."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        if self.held_out < 1:
            raise ValueError(f"held_out: expected at least 1, got {self.held_out}")
        if self.draft_vocabulary is not None and self.draft_vocabulary < 1:
            raise ValueError(f"draft_vocabulary: expected at least 1, got {self.draft_vocabulary}")


def train_drafter(
    target: Target,
    config: Any,
    data: Sequence[Path],
    folder: Path,
    out: Path,
    recipe: Recipe,
    *,
    features: Path | None = None,
    exit_layers: Sequence[int] = (),
    progress: Progress = lambda what, done, total, figures: None,
) -> list[dict[str, Any]]:
    """Train a drafter and save it.

    Args:
        target: the teacher, which is not changed.
        config: of one of `METHODS`, the drafter's shape and how it drafts.
        data: stores from `specdec data`, or JSONL files.
        folder: keeps what is needed to go on after a kill.
        out: where the drafter goes, beside a report of its training.
        recipe: how to train.
        features: a folder of features that several trainings share; None for one of its own.
        exit_layers: layers to collect hidden states of, besides the one in `config`.
        progress: told what happens.

    Returns:
        The log of the training.

    Raises:
        ValueError: if the data cannot be read or is too little, or a folder belongs to another training.
    """
    began = time.time()
    conversations = Joined([read_conversations(path, target.tokenizer) for path in data])
    held_out, learned = conversations[: recipe.held_out], conversations[recipe.held_out :]
    if not learned:
        raise ValueError(
            f"data: expected more than the {recipe.held_out} conversations held out, got {len(conversations)}"
        )
    check_conversations(conversations, target)
    method = method_of(config)
    layers = sorted({*train_file(method).exit_layers(config), *exit_layers})
    depth = len(target.layer_types)
    if layers and not 1 <= layers[0] <= layers[-1] < depth:
        raise ValueError(
            f"exit_layer: expected 1 to {depth - 1} of the target's {depth} layers, got {layers}"
        )
    facts = TargetFacts.of(target)
    collected = collect_features(
        target,
        learned,
        features or folder / "features",
        exit_layers=layers,
        progress=lambda done: progress("reading", done, len(learned), {}),
    )
    vocabulary = target.config.vocab_size
    ids = None
    if recipe.draft_vocabulary is not None and recipe.draft_vocabulary < vocabulary:
        ids = frequent_tokens(collected, recipe.draft_vocabulary, vocabulary)
    prompts = [c.prompt_ids for c in held_out]
    torch.manual_seed(recipe.schedule.seed)
    join = drafter_file(method).join

    def validate() -> dict[str, float]:
        # A copy: drafting wants the target's dtype and packs weights, training goes on in float32.
        return acceptance(target, join(target, config, copy.deepcopy(task.model), ids), prompts)

    task = train_file(method).new_task(
        target, config, collected, ids, labels=recipe.labels, validate=validate
    )
    log = train(
        task,
        folder,
        recipe.schedule,
        of={
            "target": asdict(facts),
            "drafter": asdict(config),
            "labels": recipe.labels,
            "draft_vocabulary": None if ids is None else ids.tolist(),
            "tokens": len(collected.tokens),
        },
        progress=lambda step, steps, figures: progress("training", step, steps, figures),
    )
    save_drafter(out, join(target, config, task.model, ids), dtype=torch.bfloat16)
    report = {
        "conversations": len(learned),
        "tokens": len(collected.tokens),
        "units": len(task.units),
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "recipe": asdict(recipe),
        "seconds_of_last_run": time.time() - began,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "log": log,
    }
    with whole_file(out / REPORT) as scratch:
        scratch.write_text(json.dumps(report, indent=1))
    return log
