"""No drafter: the plain loop, the baseline of everything."""

from __future__ import annotations

from torch import Tensor

from ..state import State
from ..tree import Accepted, TokenTree
from .protocol import Budget, Proposals


class NoDrafter:
    """Proposes nothing, so every tree is its root and every round emits one token."""

    def start(self, state: State, hidden: Tensor) -> None:
        """Do nothing."""

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Propose nothing."""
        return Proposals.none(len(state.rows.host), state.text.device)

    def observe(self, state: State, tree: TokenTree, accepted: Accepted, hidden: Tensor) -> None:
        """Do nothing."""
