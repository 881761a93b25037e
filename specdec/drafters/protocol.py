"""The drafter interface: the protocol `Drafter`, its `Proposals` and its `Budget`."""

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
    """The cost of a draft by the cost table."""

    fixed: float = 0.0
    """Milliseconds per draft, independent of its length."""
    step: float = 0.0
    """Milliseconds per step of a draft model."""


class Budget(NamedTuple):
    """Limits of one round's draft."""

    nodes: int
    """Most nodes in a tree, the root included."""
    depth: int
    """Depth of the deepest node that any row can still use."""
    row_depth: Tensor
    """`[B]` int64, depth of the deepest node that each row can still use."""
    row_nodes: Tensor | None = None
    """`[B]` int64, most nodes of each row's tree, the root included; None if equal for all rows."""
    width: int = 8
    """Number of beams that is worth its time."""
    node_price: float = 0.0
    """Expected accepted tokens that a node must bring to be worth its time in the target's pass."""
    ms_price: float = 0.0
    """Expected tokens, of all rows together, that a millisecond of drafting must bring."""
    costs: Mapping[object, DraftCost] = MappingProxyType({})
    """Cost per drafter; a drafter that is not listed costs nothing."""

    def least_score(self, asked: float | None, known: Calibration) -> float:
        """Return the least score of a proposed node: the log of the setting `asked`, or from `node_price` if it is None."""
        least = self.node_price / known.share if asked is None else asked
        return math.log(least) if least else -math.inf

    def least_to_go_on(self, asked: float | None, drafter: object, known: Calibration) -> float:
        """Return the probability, averaged over rows, that a draft needs for one more step: `asked`, or from `ms_price`."""
        if asked is not None:
            return asked
        step = self.costs.get(drafter, DraftCost()).step
        return self.ms_price * step / (len(self.row_depth) * known.step_gain)

    def spent(self, drafter: object, steps: int = 0) -> float:
        """Return the milliseconds of a draft with this many steps."""
        cost = self.costs.get(drafter, DraftCost())
        return cost.fixed + steps * cost.step


class Proposals(NamedTuple):
    """Proposed tokens; each continues an earlier proposal or the root. Packing merges equal ones."""

    tokens: Tensor
    """`[B, K]` int64."""
    parents: Tensor
    """`[B, K]` int64, index of the proposal that each one continues; -1 for the root."""
    scores: Tensor
    """`[B, K]` float32, cumulative draft log-probability."""
    valid: Tensor
    """`[B, K]` bool; False at padding."""
    source: Tensor
    """`[B, K]` int64, index of the beam or drafter that proposed it."""
    shallow: Shallow | None = None
    """Set by a drafter that has run the target's first layers on the root and its proposals, which form a chain."""
    side: SideNodes | None = None
    """Side nodes that the drafter wants in the same pass; at most its `side_nodes`."""
    spent: float = 0.0
    """Milliseconds of the draft, by the cost table."""

    @classmethod
    def none(cls, batch: int, device: torch.device, spent: float = 0.0) -> Proposals:
        """Return no proposals."""
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
