"""Training of Medusa heads: head k learns the target's prediction k tokens behind the root (Medusa section 2.2.1).

The loss is the sum of the heads' cross entropies with weights 0.8^k by default. The target is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..drafters.medusa import MedusaConfig, MedusaModel, heads_of, new_module
from ..model.target import Target
from .ahead import Ahead, cross_entropy
from .begin import copy_head
from .features import Features
from .loss import chunked_cross_entropy


def exit_layers(config: MedusaConfig) -> list[int]:
    """Return no layer: only the last hidden state is used, which is always collected."""
    return []


def new_task(
    target: Target,
    config: MedusaConfig,
    features: Features,
    draft_vocabulary: Tensor | None,
    *,
    labels: str,
    validate: Callable[[], dict[str, float]],
) -> MedusaTask:
    """Initialise the heads so that each predicts what the target's head predicts."""
    model = new_module(config, target.config.vocab_size, draft_vocabulary).to(target.device)
    begin_as_target(target, model)
    return MedusaTask(target, model, features, labels=labels, validate=validate)


@torch.no_grad()
def begin_as_target(target: Target, model: MedusaModel) -> None:
    """Set residual blocks to zero, output matrices to the target's head, projections to the identity."""
    head: Any
    for head in model.heads:
        for part in head.blocks.parameters():
            nn.init.zeros_(part)
        if model.config.output == "own":
            copy_head(target, model.draft_vocabulary, head.output)
        elif model.config.output == "projected":
            nn.init.eye_(head.output.weight)


class MedusaTask:
    """Training positions and the loss of the heads on them."""

    def __init__(
        self,
        target: Target,
        model: MedusaModel,
        features: Features,
        *,
        labels: str = "distribution",
        validate: Callable[[], dict[str, float]] = dict,
    ) -> None:
        """Prepare.

        Args:
            target: the teacher; its head is used by heads without their own.
            model: the heads; its configuration holds the loss weights.
            features: of training texts.
            labels: the target's `greedy` token, or its `distribution` over the likeliest tokens.
            validate: called after each epoch; returns figures for the log.

        Raises:
            ValueError: if `labels` is neither.
        """
        self.target, self.model, self.features = target, model, features
        self.validate = validate
        self.ahead = Ahead(
            features,
            length=model.config.heads,
            labels=labels,
            vocabulary_size=target.config.vocab_size,
            draft_vocabulary=model.draft_vocabulary,
        )
        self.units = self.ahead.units
        heads, own = heads_of(target, model), model.config.output == "own"
        self.heads = heads if own else heads * model.config.heads
        self.learned = [list(head.parameters()) if own else [] for head in self.heads]

    def loss(self, units: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted sum of the heads' mean cross entropies, and each head's accuracy."""
        at, real = self.ahead.positions(units)
        device, dtype = self.target.device, self.target.dtype
        hidden = self.features.hidden[units].to(device, dtype)
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            read = self.model(hidden)  # [T, P, E]
        loss = torch.zeros((), device=device)
        rights = {}
        weights = self.model.config.loss_weights
        for k, (head, rows, weight) in enumerate(zip(self.heads, read, weights, strict=True)):
            here = real[:, k]
            taught = self.ahead.taught(at[here, k], device)
            right = torch.zeros(len(taught.first), device=device)
            compare = partial(cross_entropy, taught=taught, right=right)
            rows = rows[here.to(device)]
            count = max(len(rows), 1)
            loss = (
                loss
                + weight
                * chunked_cross_entropy(head, rows, compare, self.learned[k], dtype)
                / count
            )
            rights[f"right_{k + 1}"] = float(right.sum()) / count
        return loss, rights
