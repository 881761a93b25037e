"""Training ReDrafter's model by local distillation (ReDrafter section 3.3).

At every position of a text the model sees the target's hidden state and the next T tokens, one at a time, and learns
what the target would write after each of them. Gradients never reach the target.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specdec_kernels import LMHeadTopK

from ..drafters.redrafter import ReDrafterConfig, ReDrafterModel, new_module
from ..model.target import Target
from .features import Features
from .loss import chunked_cross_entropy

LABELS = ("greedy", "distribution")


def exit_layers(config: ReDrafterConfig) -> list[int]:
    """Name the layers whose hidden states are learned from: the last alone, which is always there."""
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
    """Begin with random weights."""
    model = new_module(config, target.config.vocab_size, draft_vocabulary).to(target.device)
    return ReDrafterTask(target, model, features, labels=labels, validate=validate)


class ReDrafterTask:
    """Positions of texts, and the loss of the model on them."""

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
            target: the teacher; its embedding and, for a tied head, its head are used.
            model: what is trained.
            features: of training texts.
            labels: learn the target's `greedy` token, or its `distribution` over the likeliest tokens.
            validate: measures the model after each epoch.

        Raises:
            ValueError: if `labels` is neither.
        """
        if labels not in LABELS:
            raise ValueError(f"labels: expected one of {', '.join(LABELS)}, got {labels!r}")
        self.target, self.model, self.features, self.labels = target, model, features, labels
        self.validate = validate
        length = model.config.trained_length
        begins = features.begins.tolist()
        # From the position that predicts the first written token to the last one with a label.
        positions = [
            torch.arange(begin, max(end - 2, begin))
            for begin, end in zip(begins, features.ends.tolist(), strict=True)
        ]
        self.units = torch.cat(positions)
        ends = [end.expand(len(p)) for end, p in zip(features.ends, positions, strict=True)]
        self.end = torch.zeros(len(features.tokens), dtype=torch.int64)
        self.end[self.units] = torch.cat(ends)
        self.ahead = torch.arange(1, length + 1)
        ids = model.draft_vocabulary
        tied = model.config.tied_head
        self.head = target.draft_head(ids) if tied else LMHeadTopK(model.output)
        self.learned = [] if tied else list(model.output.parameters())
        vocabulary = target.config.vocab_size
        self.place = torch.arange(vocabulary)
        if ids is not None:
            self.place = torch.full((vocabulary,), -1).index_copy(
                0, ids.cpu(), torch.arange(len(ids))
            )

    def loss(self, units: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the mean cross entropy over positions and steps, and per step how often the best token is right."""
        features = self.features
        at = units[:, None] + self.ahead  # [P, T]
        real = at < self.end[units][:, None] - 1
        at = torch.where(real, at, units[:, None])
        tokens = features.tokens[at].long()
        best = features.top_ids[at, 0]
        if self.labels == "greedy":
            # Behind a token that the target would not write, nothing is ever accepted.
            real[:, 1:] &= (tokens[:, 1:] == best[:, :-1]).long().cumprod(1).bool()
        device, dtype = self.target.device, self.target.dtype
        with torch.no_grad():
            embedded = self.target.embed(tokens.T.to(device))  # [T, P, E]
        context = features.hidden[units].to(device, dtype)
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            read = self.model(embedded, context).transpose(0, 1)[real.to(device)]  # [R, E or X]
        read = read.to(self.head.linear.weight.dtype)

        at, kept = at[real], 1 if self.labels == "greedy" else None
        # The draft vocabulary's ids, -1 outside it.
        ids = self.place[features.top_ids[at, :kept].long()].to(device)  # [R, 16]
        probs = features.top_probs[at, :kept].to(device) * (ids >= 0)
        probs = probs / probs.sum(-1, keepdim=True).clamp(min=1e-6)
        known, first, ids = ids.amax(1, keepdim=True) >= 0, ids[:, 0], ids.clamp(min=0)
        right = torch.zeros(len(at), device=device)

        def compare(predicted: Tensor, here: slice) -> Tensor:
            chosen = predicted.gather(1, ids[here])
            right[here] = ((chosen[:, 0] == predicted.amax(1)) & (first[here] >= 0)).float()
            predicted *= known[here]  # nothing is learned from tokens that cannot be drafted
            predicted.scatter_add_(1, ids[here], -probs[here].to(predicted.dtype))
            return -(probs[here] * chosen.float().clamp(min=1e-30).log()).sum()

        loss = chunked_cross_entropy(self.head, read, compare, self.learned) / len(read)
        step = real.nonzero()[:, 1]
        rights = torch.bincount(step, right.cpu(), minlength=len(self.ahead))
        rights /= real.sum(0).clamp(min=1)
        return loss, {f"right_{i + 1}": share for i, share in enumerate(rights.tolist())}


def frequent_tokens(features: Features, size: int, vocabulary_size: int) -> Tensor:
    """Choose a draft vocabulary: the tokens that the target is expected to write most often.

    Probabilities are counted, not picks alone: a short text holds too few different tokens to rank the rarer ones.

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
