"""Token recycling: proposes the tokens that the target ranked highest after the same token before.

A pass of the target ranks the vocabulary at every node, and plain decoding uses the first rank only. Here the best k are
kept in a table of successors, `[V, k]`, one row per token of the vocabulary. A draft is a breadth-first tree read from
the table. Its shape is fixed: the paths of ranks that were accepted most often.

Source: arXiv 2408.08696.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..limits import MAX_NODES
from ..model.passed import Verified
from ..model.target import Target
from ..state import State
from ..tree import Accepted, TokenTree
from .parts.calibration import Calibration, calibration_of
from .parts.ranges import check_between, check_shares
from .protocol import Budget, Drafter, Proposals

MOST_RANKS = 8
Path = tuple[int, ...]
"""Ranks from the root down."""
UNKNOWN = -1
"""Marks table entries without a known successor."""


@dataclass(frozen=True, slots=True)
class RecyclingConfig:
    """Settings of token recycling."""

    ranks: int = 8
    """Successors kept per token, k, 1 to 8."""
    length: int = 6
    """Depth of the tree, 1 to 16."""
    min_prob: float | None = None
    """Least acceptance probability of a proposed node, above 0 to 1; None derives it from the cost table."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        check_between(self, 1, MOST_RANKS, "ranks")
        check_between(self, 1, 16, "length")
        check_shares(self, "min_prob")


class Template(NamedTuple):
    """The shape of a draft tree, level by level."""

    above: list[Tensor]
    """Per level `[n]` int64, index of each node's parent in the level before."""
    ranks: list[Tensor]
    """Per level `[n]` int64, each node's rank among its parent's successors."""
    parents: Tensor
    """`[K]` int64, each node's parent among all nodes; -1 for the root."""
    rank_of: Tensor
    """`[K]` int64, the ranks of all levels."""
    scores: Tensor
    """`[K]` float32, cumulative log-probabilities."""

    def to(self, device: torch.device) -> Template:
        """Copy to a device."""

        def copied(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)  # does not block the host

        above, ranks = ([copied(x) for x in level] for level in (self.above, self.ranks))
        return Template(above, ranks, *map(copied, self[2:]))


def template(right: Sequence[float], length: int, nodes: int, least: float) -> Template:
    """Choose the most likely paths of ranks.

    Args:
        right: measured probability that the successor of each rank comes next, the best rank first.
        length: depth of the tree.
        nodes: most nodes.
        least: least score of a node.
    """
    costs = [-math.log(rate) for rate in right]
    waiting: list[tuple[float, Path]] = [(costs[0], (0,))]
    chosen: dict[Path, float] = {}
    while waiting and len(chosen) < nodes:
        # The cheapest remaining path. Its next rank and its first child, pushed now, cost at least as much.
        cost, path = heapq.heappop(waiting)
        if cost > -least:
            break
        chosen[path] = cost
        above, rank = path[:-1], path[-1]
        if rank + 1 < len(right):
            heapq.heappush(waiting, (cost - costs[rank] + costs[rank + 1], (*above, rank + 1)))
        if len(path) < length:
            heapq.heappush(waiting, (cost + costs[0], (*path, 0)))
    paths = sorted(chosen, key=len)  # stable: each level stays in order of cost
    levels: list[list[Path]] = [list(level) for _, level in groupby(paths, key=len)]
    places: dict[Path, int] = {(): 0}
    places |= {path: at for level in levels for at, path in enumerate(level)}
    index: dict[Path, int] = {path: at for at, path in enumerate(paths)}
    return Template(
        [torch.tensor([places[path[:-1]] for path in level]) for level in levels],
        [torch.tensor([path[-1] for path in level]) for level in levels],
        torch.tensor([index.get(path[:-1], -1) for path in paths], dtype=torch.int64),
        torch.tensor([path[-1] for path in paths], dtype=torch.int64),
        torch.tensor([-chosen[path] for path in paths]),
    )


class RecyclingDrafter(Drafter):
    """Drafts from a table of successors that all texts of a session share."""

    def __init__(self, config: RecyclingConfig | None = None, *, vocabulary_size: int) -> None:
        """Create a drafter.

        Args:
            config: settings; None for the defaults.
            vocabulary_size: V of the target.
        """
        self.config = config or RecyclingConfig()
        self.vocabulary_size = vocabulary_size
        self.ranks = min(self.config.ranks, vocabulary_size)
        """Successors kept per token."""
        self.calibration: Calibration = calibration_of("recycling")
        self._templates: dict[float, Template] = {}

    def start(self, state: State) -> None:
        """Create the table, unless an earlier text of the session has."""
        if self not in state.memory:
            state.memory[self] = torch.full(
                (self.vocabulary_size, self.ranks),
                UNKNOWN,
                dtype=torch.int32,
                device=state.text.ids.device,
            )

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Read the tree from the table, level by level."""
        table = state.memory[self]
        shape = self._template(
            budget.least_score(self.config.min_prob, self.calibration), table.device
        )
        levels = min(len(shape.ranks), budget.depth)
        if levels == 0:
            return Proposals.none(len(state.rows.host), table.device, budget.spent(self))
        level, tokens = state.roots[:, None], []
        for above, rank in zip(shape.above[:levels], shape.ranks[:levels], strict=True):
            # Successors of an unknown token are children of an invalid proposal, and so invalid too.
            level = table[level[:, above].clamp(min=0), rank].long()  # [B, n]
            tokens.append(level)
        drafted = torch.cat(tokens, 1)  # [B, K]
        known = slice(drafted.shape[1])
        return Proposals(
            tokens=drafted.clamp(min=0),
            parents=shape.parents[known].expand_as(drafted),
            scores=shape.scores[known].expand_as(drafted),
            valid=drafted >= 0,
            source=shape.rank_of[known].expand_as(drafted),
            spent=budget.spent(self),
        )

    def _template(self, least: float, device: torch.device) -> Template:
        """Return the tree of all nodes with at least this score; computed once."""
        if least not in self._templates:
            right = self.calibration.tables["right"][: self.ranks]
            made = template(right, self.config.length, MAX_NODES - 1, least)
            self._templates[least] = made.to(device)
        return self._templates[least]

    def observe(
        self, state: State, tree: TokenTree, accepted: Accepted, verified: Verified
    ) -> None:
        """Store the target's best tokens at every node; among nodes with the same token the last counts."""
        table = state.memory[self]
        logits = verified.logits[..., : self.vocabulary_size]  # a padded head has more columns
        best = logits.topk(self.ranks, -1).indices.flatten(0, 1)  # [B N, k]
        tokens = tree.tokens.flatten()  # padding repeats the root's
        nodes = torch.arange(tree.tokens.shape[1], device=table.device)
        place = torch.arange(len(tokens), device=table.device)
        place = place.masked_fill((nodes >= tree.sizes[:, None]).flatten(), -1)
        # On a GPU the order of several writes to one place is undefined, so the last node is chosen first.
        last = torch.full((len(table),), -1, device=table.device)
        last.scatter_reduce_(0, tokens, place, "amax")
        table[tokens] = best[last[tokens]].int()


def new_drafter(target: Target, **settings: Any) -> RecyclingDrafter:
    """Create the drafter; `settings` are fields of `RecyclingConfig`."""
    return RecyclingDrafter(RecyclingConfig(**settings), vocabulary_size=target.config.vocab_size)
