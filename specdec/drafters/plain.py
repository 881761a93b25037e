"""Plain decoding without drafts: the baseline."""

from __future__ import annotations

from ..model.target import Target
from ..state import State
from .protocol import Budget, Drafter, Proposals


class PlainDrafter(Drafter):
    """Proposes nothing, so every tree is its root and every round emits one token."""

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Propose nothing."""
        return Proposals.none(len(state.rows.host), state.text.ids.device)


def new_drafter(target: Target) -> PlainDrafter:
    """Create the drafter; it has no settings."""
    return PlainDrafter()
