"""What a drafter is: three methods, and proposals as tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..model.cache import Rows
from ..model.passed import Listener, Shallow, SideNodes, Tap, Verified
from ..state import State
from ..tree import Accepted, TokenTree
from .parts.calibration import Calibration


class DraftCost(NamedTuple):
    """What a draft of one drafter costs, by the cost table."""

    fixed: float = 0.0
    """Milliseconds, however far it goes."""
    step: float = 0.0
    """Milliseconds of each step of a model."""


class Budget(NamedTuple):
    """How much a draft may propose this round."""

    nodes: int
    """Most nodes in a tree, the root included."""
    depth: int
    """Deepest node that any row can still use."""
    row_depth: Tensor
    """`[B]` int64, deepest node that each row can still use."""
    row_nodes: Tensor | None = None
    """`[B]` int64, most nodes of each row's tree where rows differ, the root included."""
    width: int = 8
    """Beams of a search that are worth their time."""
    node_price: float = 0.0
    """Tokens that a node must promise to be worth its time in the target's pass."""
    ms_price: float = 0.0
    """Tokens that a millisecond of drafting must promise, of all rows together."""
    costs: Mapping[object, DraftCost] = MappingProxyType({})
    """What drafts cost, by the drafter; one that is not there is free."""

    def least_score(self, asked: float | None, known: Calibration) -> float:
        """Return the score under which a node is left out, from the probability that was asked for, or by its price."""
        least = self.node_price / known.share if asked is None else asked
        return math.log(least) if least else -math.inf

    def least_to_go_on(self, asked: float | None, drafter: object, known: Calibration) -> float:
        """Return the probability that a draft must hold for one more step, on average over rows; likewise."""
        if asked is not None:
            return asked
        step = self.costs.get(drafter, DraftCost()).step
        return self.ms_price * step / (len(self.row_depth) * known.step_gain)

    def spent(self, drafter: object, steps: int = 0) -> float:
        """Return the milliseconds of a draft of so many steps."""
        cost = self.costs.get(drafter, DraftCost())
        return cost.fixed + steps * cost.step


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
    spent: float = 0.0
    """Milliseconds that the draft has cost, by the cost table."""

    @classmethod
    def none(cls, batch: int, device: torch.device, spent: float = 0.0) -> Proposals:
        """Propose nothing."""
        ids = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        return cls(ids, ids, ids.float(), ids.bool(), ids, spent=spent)


class Drafter(Protocol):
    """Proposes what may come next. Whatever it proposes, the text does not change, only its speed.

    A class that inherits from this one only writes what it needs beyond `draft`.
    """

    name: str = ""
    """What it was loaded by, for tables and statistics; the class's name where there is none."""
    tap: Tap | None = None
    """Reads prompts along with the target."""
    listener: Listener | None = None
    """Which hidden states it wants of every pass; it keeps keys and values beside the target's, so a union has one such."""
    side_nodes: int = 0
    """Most side nodes per row that a draft asks for."""
    calibration: Calibration | None = None
    """How good it is; without one a budget has no prices, and nothing watches whether drafting pays."""

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
