"""ReDrafter's draft model: configuration, recurrent step, residual blocks and head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specdec_kernels import RecurrentDraftStep

# The authors keep the 50 likeliest tokens before they normalise (`warp_logits`).
AUTHORS_TOP = 50


@dataclass(frozen=True, slots=True)
class ReDrafterConfig:
    """Shape of a draft model and its draft settings."""

    hidden_size: int
    """E, the target's hidden size."""
    exit_dim: int
    """X, width of the residual blocks; 2E in the paper, other widths add a projection."""
    residual_blocks: int = 2
    rnn: bool = True
    """True for a recurrent state, False for a running sum of embeddings."""
    tied_head: bool = False
    """True for the target's head behind a projection `X -> E`, False for a separate head."""
    top_rule: int | None = None
    """Normalise over this many likeliest tokens, 50 in the authors' code; None for all."""
    trained_length: int = 5
    """Number of draft steps in training."""
    beam_width: int | None = None
    """W, 1 to 64; None: computed from the cost table."""
    draft_length: int = 5
    """Maximum draft length, without the root; the authors' beam length includes it."""
    keep: str = "expanded"
    """Nodes to verify: those of the final beams (`final`, as the authors) or of all beams of all steps (`expanded`)."""
    min_prob: float | None = None
    """Minimum cumulative probability of a proposed node; 0 as the authors, None: computed from the cost table."""
    min_step_prob: float | None = None
    """Minimum summed probability of the beams, averaged over rows, for another step; 0 and None as above."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        for name, least, most in (
            ("hidden_size", 1, None), ("exit_dim", 1, None), ("residual_blocks", 0, None),
            ("trained_length", 1, None), ("beam_width", 1, 64), ("draft_length", 1, 64),
            ("min_prob", 0, 1), ("min_step_prob", 0, 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None and name in ("beam_width", "min_prob", "min_step_prob"):
                continue
            whole = name not in ("min_prob", "min_step_prob")
            fits = isinstance(value, int if whole else int | float) and value >= least
            if not fits or (most is not None and value > most):
                bounds = f"at least {least}" if most is None else f"{least} to {most}"
                raise ValueError(f"{name}: expected {bounds}, got {value}")
        if self.top_rule is not None and not 1 <= self.top_rule <= AUTHORS_TOP:
            raise ValueError(f"top_rule: expected 1 to {AUTHORS_TOP} or None, got {self.top_rule}")
        if self.keep not in ("final", "expanded"):
            raise ValueError(f"keep: expected 'final' or 'expanded', got {self.keep!r}")


class ReDrafterModel(nn.Module):
    """Recurrent step, residual blocks and output projection or head."""

    draft_vocabulary: Tensor | None

    def __init__(
        self,
        config: ReDrafterConfig,
        vocabulary_size: int,
        draft_vocabulary: Tensor | None = None,
    ) -> None:
        """Create a model with random weights.

        Args:
            config: shape of the model.
            vocabulary_size: V of the target.
            draft_vocabulary: `[Vd]` int64, ascending, the only tokens it can draft; None for all.

        Raises:
            ValueError: if the draft vocabulary is not ascending ids of the vocabulary.
        """
        super().__init__()
        check_draft_vocabulary(draft_vocabulary, vocabulary_size)
        self.config, self.vocabulary_size = config, vocabulary_size
        self.step = RecurrentDraftStep(
            config.hidden_size,
            exit_dim=None if config.exit_dim == 2 * config.hidden_size else config.exit_dim,
            residual_blocks=config.residual_blocks,
            rnn=config.rnn,
        )
        size = vocabulary_size if draft_vocabulary is None else len(draft_vocabulary)
        out = config.hidden_size if config.tied_head else size
        # The projection before a tied head, or a separate head.
        self.output = nn.Linear(config.exit_dim, out, bias=False)
        self.register_buffer("draft_vocabulary", draft_vocabulary)

    def forward(self, embedded: Tensor, context: Tensor) -> Tensor:
        """Run all draft steps on given tokens, for training.

        Args:
            embedded: `[T, P, E]`, embeddings of the T tokens behind each of P positions.
            context: `[P, E]`, the target's hidden states there.

        Returns:
            `[T, P, E or X]`, inputs of the head.
        """
        part = self.step.context_part(context)
        state = self.step.initial_state(context)
        steps = []
        for tokens in embedded:
            state, features = self.step(tokens, state, context, part)
            steps.append(features)
        return self.head_input(torch.stack(steps))

    def head_input(self, features: Tensor) -> Tensor:
        """Return the input of the head for features `[..., X]`: projected to E for a tied head."""
        projected: Tensor = self.output(features) if self.config.tied_head else features
        return projected


def check_draft_vocabulary(ids: Tensor | None, vocabulary_size: int) -> None:
    """Raise ValueError unless `ids` are ascending ids of a vocabulary, or None."""
    if ids is None:
        return
    if (
        ids.ndim != 1
        or len(ids) == 0
        or ids.dtype != torch.int64
        or bool((ids[1:] <= ids[:-1]).any())
    ):
        raise ValueError(
            f"draft_vocabulary: expected ascending ids in int64, got {ids.dtype} of shape {list(ids.shape)}"
        )
    if ids[0] < 0 or ids[-1] >= vocabulary_size:
        raise ValueError(
            f"draft_vocabulary: expected ids from 0 to {vocabulary_size - 1}, "
            f"got {int(ids[0])} to {int(ids[-1])}"
        )
