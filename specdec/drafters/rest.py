"""REST: proposes what followed the last tokens in a store of text (arXiv 2311.08252).

The longest suffix of the text that the store contains is looked up, and the continuations of its occurrences become a
tree. A node's probability comes from its share of the occurrences and the length of the match. Drafts are
deterministic: if there are more occurrences than are read, evenly spaced ones are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datastore.order import CONTEXT
from ..datastore.store import Datastore
from ..model.target import Target
from ..state import State
from .parts.calibration import Calibration, calibration_of
from .parts.continuations import Trie, proposals_of
from .parts.ranges import check_between, check_shares
from .protocol import Budget, Drafter, Proposals


@dataclass(frozen=True, slots=True)
class RestConfig:
    """Settings of REST."""

    places: int = 128
    """Most occurrences read, 1 to 65536."""
    length: int = 10
    """Most tokens taken after an occurrence, 1 to 64."""
    longest: int = 16
    """Longest match searched for, 1 to 32."""
    shortest: int = 1
    """Shortest match used, 1 to `longest`."""
    min_prob: float | None = None
    """Least acceptance probability of a proposed node, above 0 to 1; None derives it from the cost table."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        check_between(self, 1, 65536, "places")
        check_between(self, 1, 64, "length")
        check_between(self, 1, CONTEXT, "longest")
        check_between(self, 1, self.longest, "shortest")
        check_shares(self, "min_prob")


class RestDrafter(Drafter):
    """Drafts from a store of text."""

    def __init__(self, store: Datastore, config: RestConfig | None = None) -> None:
        """Create a drafter from an open store, with the default or the given configuration."""
        self.store, self.config = store, config or RestConfig()
        self.calibration: Calibration = calibration_of("rest")
        # Measured odds that the next token follows a single match of 1, 2, … tokens.
        self._odds = np.array(self.calibration.tables["odds"])
        # With n matches, the weight of "none of them" is n to this power.
        self._spread: float = self.calibration.tables["spread"]

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Propose the continuations of each row's longest match."""
        tries = [self._trie(state.text.host[row], budget) for row in state.rows.host]
        return proposals_of(tries, state.text.ids, budget.nodes - 1, budget.spent(self))

    def _trie(self, text: list[int], budget: Budget) -> Trie:
        config, odds = self.config, self._odds
        length = min(config.length, budget.depth)
        if length < 1:
            return Trie.empty()
        match = self.store.longest(text, config.longest)
        if match.length < config.shortest:
            return Trie.empty()
        each = match.continuations(config.places, length)
        # Each correct token makes the match one longer.
        agreed = np.minimum(match.length + np.arange(length), len(odds))
        weights = np.broadcast_to(odds[agreed - 1], each.shape)
        return Trie.of(each, weights, self._spread).best(
            budget.nodes - 1, budget.least_score(config.min_prob, self.calibration)
        )


def new_drafter(target: Target, store: str, **settings: Any) -> RestDrafter:
    """Create the drafter.

    Args:
        target: the target; the store must hold ids of its tokenizer.
        store: folder written by `specdec datastore build`.
        settings: fields of `RestConfig`.

    Raises:
        ValueError: if the store is damaged or holds another tokenizer's ids, or a setting is out of range.
    """
    config, opened = RestConfig(**settings), Datastore.open(store)
    opened.check(target)
    return RestDrafter(opened, config)
