"""Medusa's heads: configuration and modules."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .medusa_trees import TREES, checked_paths
from .ranges import check_between, check_shares
from .redrafter_model import check_draft_vocabulary

OUTPUTS = ("own", "projected", "target")
LIKELIEST = "likeliest"
PAPERS_DECAY = 0.8
"""Medusa section 2.2.1: the loss weight of head k is 0.8^k."""


@dataclass(frozen=True, slots=True)
class MedusaConfig:
    """Shape of the heads and their draft settings."""

    hidden_size: int
    """E, the target's hidden size."""
    heads: int = 4
    """T, 1 to 16; the first predicts the token behind the root."""
    blocks: int = 1
    """Residual blocks per head, 0 to 16."""
    output: str = "own"
    """Output matrix: one per head (`own`, as in the paper), the `target`'s head, or the target's head behind a projection
    `E -> E` (`projected`)."""
    head_weights: tuple[float, ...] | None = None
    """Loss weight of each head; None for the paper's 0.8, 0.8^2, …"""
    tree: str | Collection[Sequence[int]] = LIKELIEST
    """Proposed nodes: the `likeliest` of the round, a static tree by its name in `TREES`, or a static tree given as
    paths of ranks, each with all its prefixes."""
    ranks: int = 10
    """Candidate tokens per head for `likeliest`, 1 to 64."""
    draft_length: int | None = None
    """Number of heads used for drafting, 1 to T; None for all."""
    min_prob: float | None = None
    """Minimum cumulative probability of a proposed node; 0 for all. None: computed from the cost table, or all nodes of a
    static tree."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        if self.hidden_size < 1:
            raise ValueError(f"hidden_size: expected at least 1, got {self.hidden_size}")
        check_between(self, 1, 16, "heads")
        check_between(self, 0, 16, "blocks")
        check_between(self, 1, 64, "ranks")
        check_between(self, 1, self.heads, "draft_length")
        if self.min_prob != 0:
            check_shares(self, "min_prob")
        if self.output not in OUTPUTS:
            raise ValueError(f"output: expected one of {', '.join(OUTPUTS)}, got {self.output!r}")
        weights = self.head_weights
        if weights is not None:
            # From JSON it is a list.
            object.__setattr__(self, "head_weights", tuple(map(float, weights)))
            if len(weights) != self.heads or not all(0 <= weight < math.inf for weight in weights):
                raise ValueError(
                    f"head_weights: expected {self.heads} numbers from 0 on, got {list(weights)}"
                )
        if not isinstance(self.tree, str):
            object.__setattr__(self, "tree", checked_paths(self.tree))
        elif self.tree not in (LIKELIEST, *TREES):
            raise ValueError(
                f"tree: expected {LIKELIEST}, {', '.join(TREES)} or paths of ranks, got {self.tree!r}"
            )
        if self.paths is not None:
            if (depth := max(map(len, self.paths))) > self.heads:
                raise ValueError(
                    f"tree: expected paths of at most {self.heads} ranks, one per head, got one of {depth}"
                )
            if (most := max(max(path) for path in self.paths)) > 63:
                raise ValueError(f"tree: expected ranks of at most 63, got {most}")

    @property
    def paths(self) -> tuple[tuple[int, ...], ...] | None:
        """The static tree; None for `likeliest`."""
        if isinstance(self.tree, str):
            return TREES.get(self.tree)
        return tuple(tuple(path) for path in self.tree)

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """Loss weight of each head."""
        if self.head_weights is not None:
            return self.head_weights
        return tuple(PAPERS_DECAY**k for k in range(1, self.heads + 1))


class MedusaHead(nn.Module):
    """Residual blocks and an optional output matrix."""

    def __init__(self, width: int, blocks: int, out: int | None) -> None:
        """Create a head with random weights.

        Args:
            width: E.
            blocks: number of residual blocks.
            out: rows of the output matrix; None for no matrix.
        """
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.output = None if out is None else nn.Linear(width, out, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the residual blocks to hidden states `[..., E]`, without the output matrix."""
        for block in self.blocks:
            hidden = hidden + F.silu(block(hidden))
        return hidden


class MedusaModel(nn.Module):
    """T independent heads."""

    draft_vocabulary: Tensor | None

    def __init__(
        self,
        config: MedusaConfig,
        vocabulary_size: int,
        draft_vocabulary: Tensor | None = None,
    ) -> None:
        """Create heads with random weights.

        Args:
            config: shape of the heads.
            vocabulary_size: V of the target.
            draft_vocabulary: `[Vd]` int64, ascending, the only tokens they can draft; None for all.

        Raises:
            ValueError: if the draft vocabulary is not ascending ids of the vocabulary.
        """
        super().__init__()
        check_draft_vocabulary(draft_vocabulary, vocabulary_size)
        self.config, self.vocabulary_size = config, vocabulary_size
        size = vocabulary_size if draft_vocabulary is None else len(draft_vocabulary)
        width = config.hidden_size
        out = {"own": size, "projected": width, "target": None}[config.output]
        self.heads = nn.ModuleList(
            MedusaHead(width, config.blocks, out) for _ in range(config.heads)
        )
        self.register_buffer("draft_vocabulary", draft_vocabulary)

    def forward(self, hidden: Tensor, heads: int | None = None) -> Tensor:
        """Compute the inputs of the output matrices.

        Args:
            hidden: `[P, E]`, the target's last hidden states.
            heads: number of heads, from the first; None for all.

        Returns:
            `[T, P, E]`.
        """
        features = [head(hidden) for head in self.heads[:heads]]
        if self.config.output == "projected":
            features = [
                head.output(x)  # type: ignore[operator]
                for head, x in zip(self.heads[:heads], features, strict=True)
            ]
        return torch.stack(features)
