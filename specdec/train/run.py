"""A whole training, from text files to a drafter's folder; resumes after an interruption."""

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
# Called with the phase, units done, units in total, and the latest figures.
Progress = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings shared by the trainings of all drafters."""

    schedule: Schedule
    draft_vocabulary: int | None = 8192
    """Vd, size of the draft vocabulary; None for all tokens."""
    held_out: int = 24
    """Number of conversations, the first of the data, held out for validation."""
    labels: str = "distribution"
    """Labels of ReDrafter and Medusa: `distribution` or `greedy`."""

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
        target: the teacher, frozen.
        config: configuration of one of the trained `METHODS`.
        data: stores from `specdec data`, or JSONL files.
        folder: of the training state.
        out: output folder of the drafter and `training.json`.
        recipe: training settings.
        features: folder of hidden states shared by several trainings; None: inside `folder`.
        exit_layers: layers to collect besides those in `config`.
        progress: called with the phase, units done, units in total, and figures.

    Returns:
        The log of the training.

    Raises:
        ValueError: if the data cannot be read or is too short, or a folder belongs to another training.
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
        # A copy: drafting converts to the target's dtype and prepacks weights, training stays in float32.
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
