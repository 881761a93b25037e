"""The training loop; an interrupted training resumes with identical results."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..checkpoints.tensors import read_pickle, write_pickle
from ..host.whole_file import whole_file

STATE, LOG = "state.pt", "log.jsonl"
SAVE_EVERY_SECONDS = 60
LOG_EVERY_STEPS = 50


@dataclass(frozen=True, slots=True)
class Schedule:
    """Optimisation schedule."""

    epochs: int = 4
    batch: int = 512
    """Units (positions or texts) per step."""
    learning_rate: float = 1e-3
    """Peak learning rate: linear warm-up, then cosine decay to zero."""
    warmup: float = 0.03
    """Warm-up as a share of all steps."""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 0.5
    """Maximum gradient norm."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        for name in ("epochs", "batch"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate: expected above 0, got {self.learning_rate}")

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of one step."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        done = (step - rising) / max(1, steps - rising)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Task(Protocol):
    """A model, its training data and its loss."""

    @property
    def model(self) -> nn.Module:
        """The model; only parameters that require gradients are trained and saved."""
        ...

    @property
    def units(self) -> Tensor:
        """`[U]` int64 ids of training units."""
        ...

    def loss(self, units: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the loss over units `[B]`, and figures for the log."""
        ...

    @property
    def validate(self) -> Callable[[], dict[str, float]]:
        """Evaluates the model on held-out text."""
        ...


def train(
    task: Task,
    folder: Path,
    schedule: Schedule,
    *,
    of: dict[str, Any] | None = None,
    progress: Callable[[int, int, dict[str, float]], None] = lambda step, steps, figures: None,
) -> list[dict[str, Any]]:
    """Train, or resume an interrupted training.

    Args:
        task: model, data and loss; the model is updated in place.
        folder: of the training state and the log.
        schedule: optimisation schedule.
        of: identity of the training, JSON types; a state with another identity is refused.
        progress: called with the step, the number of steps and the latest figures.

    Returns:
        The log: training figures every 50 steps, validation figures after each epoch.

    Raises:
        ValueError: if the folder holds the state of another training, or there are fewer units than a batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        weights.values(),
        lr=schedule.learning_rate,
        betas=schedule.betas,
        weight_decay=schedule.weight_decay,
    )
    per_epoch = len(task.units) // schedule.batch
    if per_epoch == 0:
        raise ValueError(
            f"batch: expected at most {len(task.units)} units of data, got {schedule.batch}"
        )
    steps = per_epoch * schedule.epochs
    identity = json.dumps(
        {"schedule": asdict(schedule), "steps": steps, **(of or {})}, sort_keys=True
    )
    step, log = _restore(folder / STATE, identity, weights, optimizer)
    order = _order(task, schedule, step // per_epoch)
    saved = time.monotonic()
    sums: dict[str, float] = {}
    summed = 0
    while step < steps:
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = _order(task, schedule, epoch)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, steps)
        units = order[place * schedule.batch : (place + 1) * schedule.batch]
        loss, figures = task.loss(units)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights.values(), schedule.clip)
        optimizer.step()
        step += 1
        for name, value in {"loss": float(loss.detach()), **figures}.items():
            sums[name] = sums.get(name, 0.0) + value
        summed += 1
        due = step % LOG_EVERY_STEPS == 0 or step % per_epoch == 0
        if due:
            means = {name: value / summed for name, value in sums.items()}
            log.append({"step": step, "epoch": step / per_epoch, **means})
            sums, summed = {}, 0
            progress(step, steps, means)
        if step % per_epoch == 0:
            task.model.eval()
            log.append({"step": step, "epoch": step / per_epoch, "validation": task.validate()})
            task.model.train()
            progress(step, steps, log[-1]["validation"])
        # Saved only where no running mean is open, so that a resumed log is identical.
        if due and (time.monotonic() - saved > SAVE_EVERY_SECONDS or step % per_epoch == 0):
            _save(folder, identity, step, log, weights, optimizer)
            saved = time.monotonic()
    return log


def _order(task: Task, schedule: Schedule, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + epoch)
    return task.units[torch.randperm(len(task.units), generator=generator)]


def _restore(
    path: Path,
    identity: str,
    weights: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, list[dict[str, Any]]]:
    if not path.exists():
        return 0, []
    state = read_pickle(path)
    found = state.get("identity")
    if found != identity:
        raise ValueError(f"folder: expected a run of {identity}, got one of {found} in {path}")
    with torch.no_grad():
        for name, value in state["weights"].items():
            weights[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], json.loads(state["log"])


def _save(
    folder: Path,
    identity: str,
    step: int,
    log: list[dict[str, Any]],
    weights: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    state = {
        "identity": identity,
        "step": step,
        "log": json.dumps(log),
        "weights": {name: p.detach() for name, p in weights.items()},
        "optimizer": optimizer.state_dict(),
    }
    write_pickle(folder / STATE, state)
    with whole_file(folder / LOG) as scratch:
        scratch.write_text("".join(json.dumps(line) + "\n" for line in log))
