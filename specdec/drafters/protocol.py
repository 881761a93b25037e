"""What a drafter is: three methods, and proposals as tensors."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..model.cache import Rows
from ..model.passed import Shallow, SideNodes, Tap, Verified
from ..state import State
from ..tree import Accepted, TokenTree


class Budget(NamedTuple):
    """How much a draft may propose this round."""

    nodes: int
    """Most nodes in a tree, the root included."""
    depth: int
    """Deepest node that any row can still use."""
    row_depth: Tensor
    """`[B]` int64, deepest node that each row can still use."""


class Proposals(NamedTuple):
    """Proposed tokens, each continuing an earlier proposal or the root; packing merges equal ones."""

    tokens: Tensor
    """`[B, K]` int64."""
    parents: Tensor
    """`[B, K]` int64, index of the proposal that each one continues; -1 for the root."""
    scores: Tensor
    """`[B, K]` float32, cumulative draft log-probability."""
    valid: Tensor
    """`[B, K]` bool; the others are padding."""
    source: Tensor
    """`[B, K]` int64, which beam or which drafter proposed it."""
    shallow: Shallow | None = None
    """Set by a drafter that has run the target's first layers on the root and its proposals, which form a chain."""
    side: SideNodes | None = None
    """What the drafter wants to hear from the same pass beside the tree; no more nodes than its `side_nodes`."""

    @classmethod
    def none(cls, batch: int, device: torch.device) -> Proposals:
        """Propose nothing."""
        ids = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        return cls(ids, ids, ids.float(), ids.bool(), ids)


class Drafter(Protocol):
    """Proposes what may come next. Whatever it proposes, the text does not change, only its speed.

    A class that inherits from this one only writes what it needs beyond `draft`.
    """

    tap: Tap | None = None
    """Reads prompts along with the target."""
    side_nodes: int = 0
    """Most side nodes per row that a draft asks for."""

    def start(self, state: State) -> None:
        """Begin with the rows of `state`, after prefill; for a drafter that keeps something about them."""
        return None

    def join(self, state: State, rows: Rows) -> None:
        """Take rows that begin beside others, or after them; for a drafter that keeps something about each.

        Args:
            state: all rows that are being written. What was kept of others is of no more use.
            rows: those of them that begin, prompts read and roots known; at least one.
        """
        return None

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Propose continuations of each row's root."""
        ...

    def observe(
        self, state: State, tree: TokenTree, accepted: Accepted, verified: Verified
    ) -> None:
        """Learn what became of a draft.

        Args:
            state: rows as they were drafted for; `text` already holds the accepted tokens and the next root.
            tree: what was verified.
            accepted: what the target agreed with.
            verified: what the target said at the tree's nodes and at side nodes.
        """
        return None
