"""ReDrafter's model: its shape, its recurrent state, its blocks and its head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specdec_kernels import RecurrentDraftStep

# The authors keep the 50 likeliest tokens before they normalise (`warp_logits`).
AUTHORS_TOP = 50


@dataclass(frozen=True, slots=True)
class ReDrafterConfig:
    """The shape of a draft model, and how it drafts."""

    hidden_size: int
    """E, of the target."""
    exit_dim: int
    """X, width of the residual blocks; 2E in the paper, anything else adds a projection."""
    residual_blocks: int = 2
    rnn: bool = True
    """Whether the state is recurrent; otherwise it is a running sum of embeddings."""
    tied_head: bool = False
    """Whether the head is the target's, behind a projection `X -> E`; otherwise it is the drafter's own."""
    top_rule: int | None = None
    """Probabilities are those among so many likeliest tokens, 50 in the authors' code; None for all."""
    trained_length: int = 5
    """Tokens ahead that the model was trained for."""
    beam_width: int | None = None
    """W, 1 to 64; None for what this machine makes of it."""
    draft_length: int = 5
    """Most tokens drafted behind the root; the authors' beam length counts the root too."""
    keep: str = "expanded"
    """Which nodes are verified: those of the final beams (`final`, as the authors) or of every beam there was."""
    min_prob: float | None = None
    """Cumulative probability under which a node is not worth verifying; 0 for the authors' way, None as above."""
    min_step_prob: float | None = None
    """Probability of all beams, on average over rows, under which a further step is not worth its time; likewise."""

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
    """Recurrent step, residual blocks and what turns features into tokens."""

    draft_vocabulary: Tensor | None

    def __init__(
        self,
        config: ReDrafterConfig,
        vocabulary_size: int,
        draft_vocabulary: Tensor | None = None,
    ) -> None:
        """Make a model with random weights.

        Args:
            config: its shape.
            vocabulary_size: of the target.
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
        # With a tied head the first half of the head; without one, all of it.
        self.output = nn.Linear(config.exit_dim, out, bias=False)
        self.register_buffer("draft_vocabulary", draft_vocabulary)

    def forward(self, embedded: Tensor, context: Tensor) -> Tensor:
        """Draft with given tokens, for training: all steps at once.

        Args:
            embedded: `[T, P, E]`, embeddings of the T tokens behind each of P positions.
            context: `[P, E]`, the target's hidden states there.

        Returns:
            `[T, P, E or X]`, what the head reads.
        """
        part = self.step.context_part(context)
        state = self.step.initial_state(context)
        steps = []
        for tokens in embedded:
            state, features = self.step(tokens, state, context, part)
            steps.append(features)
        return self.head_input(torch.stack(steps))

    def head_input(self, features: Tensor) -> Tensor:
        """Turn features `[..., X]` into what the head reads: the target's own wants them in its width."""
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
