"""REST: what followed the last tokens in a store of text (arXiv 2311.08252).

The longest end of the text that the store holds is looked up, the continuations of its places become a tree, and each
node is as likely as its share of the places and the length of the match make it. Equal stores and texts give equal
trees: where there are more places than are read, evenly spaced ones are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datastore.order import CONTEXT
from ..datastore.store import Datastore
from ..model.target import Target
from ..state import State
from .parts.continuations import Trie, proposals_of
from .parts.ranges import check_between, check_shares
from .protocol import Budget, Drafter, Proposals

# Odds that the next token follows the only place that matches in 1, 2, … tokens: 25,500 positions of greedy text of the default model,
# in a store of 670,000 tokens that it wrote.
ODDS = np.array([0.14, 0.22, 0.33, 0.40, 0.46, 0.65, 0.65, 0.65, 0.84, 0.92, 1.2, 1.7])

# With n places that match, the weight of "none of them" was n to this power (at 0 the text was 7% less likely).
SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class RestConfig:
    """How much of a store to follow."""

    places: int = 128
    """Most places read, 1 to 65536."""
    length: int = 10
    """Most tokens taken from a place, 1 to 64."""
    longest: int = 16
    """Longest match that is looked for, 1 to 32."""
    shortest: int = 1
    """Shortest match that is followed, 1 to `longest`."""
    min_prob: float = 0.065
    """Probability under which a node is not worth verifying, above 0 to 1."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        check_between(self, 1, 65536, "places")
        check_between(self, 1, 64, "length")
        check_between(self, 1, CONTEXT, "longest")
        check_between(self, 1, self.longest, "shortest")
        check_shares(self, "min_prob")


class RestDrafter(Drafter):
    """Drafts from a store."""

    def __init__(self, store: Datastore, config: RestConfig | None = None) -> None:
        """Take an open store, and the defaults or a configuration."""
        self.store, self.config = store, config or RestConfig()

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Propose what followed the longest match of each row."""
        nodes = budget.nodes - 1
        tries = [self._trie(state.text.host[row], budget.depth, nodes) for row in state.rows.host]
        return proposals_of(tries, state.text.ids, nodes)

    def _trie(self, text: list[int], depth: int, nodes: int) -> Trie:
        config = self.config
        length = min(config.length, depth)
        if length < 1:
            return Trie.empty()
        match = self.store.longest(text, config.longest)
        if match.length < config.shortest:
            return Trie.empty()
        each = match.continuations(config.places, length)
        # Every token that proves right makes the match one longer.
        agreed = np.minimum(match.length + np.arange(length), len(ODDS))
        weights = np.broadcast_to(ODDS[agreed - 1], each.shape)
        return Trie.of(each, weights, SPREAD).best(nodes, float(np.log(config.min_prob)))


def new_drafter(target: Target, store: str, **settings: Any) -> RestDrafter:
    """Make the drafter.

    Args:
        target: whose ids the store must hold.
        store: its folder, of `specdec datastore build`.
        settings: fields of `RestConfig`.

    Raises:
        ValueError: if the store is damaged or holds another tokenizer's ids, or a setting is out of range.
    """
    config, opened = RestConfig(**settings), Datastore.open(store)
    opened.check(target)
    return RestDrafter(opened, config)
