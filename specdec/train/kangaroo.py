"""Training Kangaroo's adapter by self-distillation (Kangaroo section 3.2).

The adapter reads what the target's first layers made of a text and learns the distribution that the whole target has
behind each token that it wrote: soft cross entropy, the head frozen, mask and positions as they are when it drafts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..drafters.kangaroo import Adapter, KangarooConfig, drafting_head, new_module
from ..model.target import Target
from .features import Features
from .loss import chunked_cross_entropy


def exit_layers(config: KangarooConfig) -> list[int]:
    """Name the layer whose hidden states the adapter reads."""
    return [config.exit_layer]


def new_task(
    target: Target,
    config: KangarooConfig,
    features: Features,
    draft_vocabulary: Tensor | None,
    *,
    labels: str,
    validate: Callable[[], dict[str, float]],
) -> KangarooTask:
    """Begin with random weights, but for the last scale; `labels` is ReDrafter's, here it is the distribution."""
    adapter = new_module(config, target.config.vocab_size, draft_vocabulary).to(target.device)
    with torch.no_grad():
        # The scale that the head is used to; from ones it would take thousands of steps to get there. Of numbers whose
        # mean is zero, as some norms subtract it; the difference leaves out what they add.
        signs = torch.ones(config.hidden_size, dtype=target.dtype, device=target.device)
        signs[1::2] = -1
        norm: Any = target.parts.norm
        adapter.output_norm.weight.copy_((norm(signs) - norm(-signs)) / 2 * signs)
        if config.own_head:
            own = drafting_head(target, config, adapter, draft_vocabulary)
            own.linear.weight.copy_(target.draft_head(draft_vocabulary).linear.weight)
    return KangarooTask(
        target,
        adapter,
        features,
        config=config,
        draft_vocabulary=draft_vocabulary,
        validate=validate,
    )


class KangarooTask:
    """Conversations, and the loss of an adapter on them."""

    def __init__(
        self,
        target: Target,
        adapter: Adapter,
        features: Features,
        *,
        config: KangarooConfig,
        draft_vocabulary: Tensor | None = None,
        validate: Callable[[], dict[str, float]] = dict,
    ) -> None:
        """Prepare.

        Args:
            target: the teacher, whose head is used.
            adapter: what is trained.
            features: of training texts, with hidden states at the exit layer.
            config: the adapter's; says after which layer it reads, and whose head reads it.
            draft_vocabulary: `[Vd]` int64, what the adapter shall choose from; the teacher's distribution is
                renormalised over it. None for all tokens.
            validate: measures the adapter after each epoch.

        Raises:
            ValueError: if there are no hidden states at this layer.
        """
        exit_layer = config.exit_layer
        if exit_layer not in features.exits:
            raise ValueError(
                f"exit_layer: expected one of {sorted(features.exits)} whose hidden states were collected, "
                f"got {exit_layer}"
            )
        self.target, self.model, self.features = target, adapter, features
        self.validate = validate
        self.exits = features.exits[exit_layer]
        self.teacher = target.draft_head(draft_vocabulary)
        self.head = self.teacher
        self.learned: list[nn.Parameter] = []
        if config.own_head:
            self.head = drafting_head(target, config, adapter, draft_vocabulary)
            self.learned = list(self.head.parameters())
        self.begins = features.begins
        self.units = torch.arange(len(features))

    def loss(self, units: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the mean cross entropy over texts, and how well the two distributions agree."""
        features = self.features
        spans = [slice(*span) for span in zip(
            features.starts[units].tolist(), features.ends[units].tolist(), strict=True
        )]  # fmt: skip
        hidden = pad_sequence([self.exits[span] for span in spans], batch_first=True)  # [B, T, E]
        place = torch.arange(hidden.shape[1])
        length = features.ends[units] - features.starts[units]
        first = self.begins[units] - features.starts[units]
        # From the position that predicts the first written token to the one that predicts the last.
        learned = (place >= first[:, None]) & (place < length[:, None] - 1)
        device, dtype = self.target.device, self.target.dtype
        real = (place < length[:, None]).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            out = self.model.forward_sequence(hidden.to(device, dtype), real)[learned.to(device)]
        at = (features.starts[units][:, None] + place)[learned]
        out = out.to(self.head.linear.weight.dtype)
        teacher = features.hidden[at].to(device, dtype)  # [R, E]
        agree = {"right_1": 0.0, "overlap": 0.0}

        def compare(predicted: Tensor, here: slice) -> Tensor:
            taught = self.teacher.logits(teacher[here]).softmax(-1)
            agree["right_1"] += float((predicted.argmax(1) == taught.argmax(1)).sum())
            agree["overlap"] += float(torch.minimum(predicted, taught).sum())
            loss = -(taught * predicted.clamp(min=1e-30).log()).sum(dtype=torch.float32)
            predicted -= taught
            return loss

        loss = chunked_cross_entropy(self.head, out, compare, self.learned) / len(out)
        return loss, {name: value / len(out) for name, value in agree.items()}
