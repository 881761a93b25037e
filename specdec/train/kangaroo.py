"""Training of Kangaroo's adapter by self-distillation (Kangaroo section 3.2).

The adapter reads the hidden states of the exit layer and learns the full target's next-token distribution by soft cross
entropy. Target and head are frozen. Mask and positions are those of drafting.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..drafters.kangaroo import Adapter, KangarooConfig, drafting_head, new_module
from ..drafters.parts.kangaroo_adapters import OUTPUT
from ..model.target import Target
from .begin import copy_final_norm, copy_head
from .features import Features
from .loss import chunked_cross_entropy


def exit_layers(config: KangarooConfig) -> list[int]:
    """Return the exit layer."""
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
    """Start from random weights, but for the last norm and a head of its own; `labels` is not used."""
    adapter = new_module(config, target.config.vocab_size, draft_vocabulary).to(target.device)
    copy_final_norm(target, adapter.output_norm)
    if config.own_head:
        copy_head(target, draft_vocabulary, getattr(adapter, OUTPUT))
    return KangarooTask(
        target,
        adapter,
        features,
        config=config,
        draft_vocabulary=draft_vocabulary,
        validate=validate,
    )


class KangarooTask:
    """Conversations and the loss of an adapter on them."""

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
            target: the teacher; its head is used.
            adapter: the adapter to train.
            features: of training texts, with hidden states at the exit layer.
            config: names the exit layer and the head.
            draft_vocabulary: `[Vd]` int64, None for all tokens. The teacher's distribution is renormalised over it.
            validate: called after each epoch; returns figures for the log.

        Raises:
            ValueError: if the hidden states of the exit layer were not collected.
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
        """Return the mean cross entropy over texts, the accuracy, and the overlap of the two distributions."""
        features = self.features
        spans = [slice(*span) for span in zip(
            features.starts[units].tolist(), features.ends[units].tolist(), strict=True
        )]  # fmt: skip
        hidden = pad_sequence([self.exits[span] for span in spans], batch_first=True)  # [B, T, E]
        place = torch.arange(hidden.shape[1])
        length = features.ends[units] - features.starts[units]
        first = self.begins[units] - features.starts[units]
        # From the position that predicts the first learned token to the one that predicts the last.
        learned = (place >= first[:, None]) & (place < length[:, None] - 1)
        device, dtype = self.target.device, self.target.dtype
        real = (place < length[:, None]).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            out = self.model.forward_sequence(hidden.to(device, dtype), real)[learned.to(device)]
        at = (features.starts[units][:, None] + place)[learned]
        teacher = features.hidden[at].to(device, dtype)  # [R, E]
        agree = {"right_1": 0.0, "overlap": 0.0}

        def compare(predicted: Tensor, here: slice) -> Tensor:
            taught = self.teacher.logits(teacher[here]).softmax(-1)
            agree["right_1"] += float((predicted.argmax(1) == taught.argmax(1)).sum())
            agree["overlap"] += float(torch.minimum(predicted, taught).sum())
            loss = -(taught * predicted.clamp(min=1e-30).log()).sum(dtype=torch.float32)
            predicted -= taught
            return loss

        loss = chunked_cross_entropy(self.head, out, compare, self.learned, dtype) / len(out)
        return loss, {name: value / len(out) for name, value in agree.items()}
