"""Training of ReDrafter's draft model by local distillation (ReDrafter section 3.3).

At every position the model reads the target's hidden state and the next T tokens one by one, and learns the target's
prediction after each. The target is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from specdec_kernels import LMHeadTopK

from ..drafters.redrafter import ReDrafterConfig, ReDrafterModel, new_module
from ..model.target import Target
from .ahead import Ahead, cross_entropy
from .features import Features
from .loss import chunked_cross_entropy


def exit_layers(config: ReDrafterConfig) -> list[int]:
    """Return no layer: only the last hidden state is used, which is always collected."""
    return []


def new_task(
    target: Target,
    config: ReDrafterConfig,
    features: Features,
    draft_vocabulary: Tensor | None,
    *,
    labels: str,
    validate: Callable[[], dict[str, float]],
) -> ReDrafterTask:
    """Start from random weights."""
    model = new_module(config, target.config.vocab_size, draft_vocabulary).to(target.device)
    return ReDrafterTask(target, model, features, labels=labels, validate=validate)


class ReDrafterTask:
    """Training positions and the loss of the model on them."""

    def __init__(
        self,
        target: Target,
        model: ReDrafterModel,
        features: Features,
        *,
        labels: str = "distribution",
        validate: Callable[[], dict[str, float]] = dict,
    ) -> None:
        """Prepare.

        Args:
            target: the teacher; its embedding is used, and its head if the model's is tied.
            model: the draft model.
            features: of training texts.
            labels: the target's `greedy` token, or its `distribution` over the likeliest tokens.
            validate: called after each epoch; returns figures for the log.

        Raises:
            ValueError: if `labels` is neither.
        """
        self.target, self.model, self.features = target, model, features
        self.validate = validate
        ids = model.draft_vocabulary
        self.ahead = Ahead(
            features,
            length=model.config.trained_length,
            labels=labels,
            vocabulary_size=target.config.vocab_size,
            draft_vocabulary=ids,
        )
        self.units = self.ahead.units
        tied = model.config.tied_head
        self.head = target.draft_head(ids) if tied else LMHeadTopK(model.output)
        self.learned = [] if tied else list(model.output.parameters())

    def loss(self, units: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the mean cross entropy over positions and steps, and each step's accuracy."""
        features = self.features
        at, real = self.ahead.positions(units)  # [P, T]
        tokens = features.tokens[at].long()
        device, dtype = self.target.device, self.target.dtype
        with torch.no_grad():
            embedded = self.target.embed(tokens.T.to(device))  # [T, P, E]
        context = features.hidden[units].to(device, dtype)
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            read = self.model(embedded, context).transpose(0, 1)[real.to(device)]  # [R, E or X]

        taught = self.ahead.taught(at[real], device)
        right = torch.zeros(len(read), device=device)
        compare = partial(cross_entropy, taught=taught, right=right)
        loss = chunked_cross_entropy(self.head, read, compare, self.learned, dtype) / len(read)
        step = real.nonzero()[:, 1]
        rights = torch.bincount(step, right.cpu(), minlength=len(self.ahead.steps))
        rights /= real.sum(0).clamp(min=1)
        return loss, {f"right_{i + 1}": share for i, share in enumerate(rights.tolist())}


def frequent_tokens(features: Features, size: int, vocabulary_size: int) -> Tensor:
    """Choose a draft vocabulary: the tokens with the highest summed probability.

    Probabilities are summed instead of counting greedy tokens, since a short text holds too few different tokens.

    Args:
        features: of training texts.
        size: Vd.
        vocabulary_size: V.

    Returns:
        `[Vd]` int64, ascending.
    """
    ids, probs = features.top_ids.flatten().long(), features.top_probs.flatten().double()
    counts = torch.bincount(ids, weights=probs, minlength=vocabulary_size)
    return counts.topk(size).indices.sort().values
