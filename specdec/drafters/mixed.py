"""The union of several drafters: their proposals share one tree, and equal ones are verified once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..model.cache import Rows
from ..model.passed import Verified
from ..state import State
from ..tree import Accepted, TokenTree
from .parts.calibration import together
from .protocol import Budget, Drafter, Proposals


class MixedDrafter(Drafter):
    """A union of drafters; a node's `source` is the index of the first drafter that proposed it."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        """Combine drafters, the most trusted first.

        Raises:
            ValueError: if there is no drafter, two of them ask for side nodes or listen to layers, or one drafts with the
                target's own layers: it leaves a chain of keys and values that other proposals cannot join.
        """
        if not drafters:
            raise ValueError("drafters: expected at least one, got none")
        for drafter in drafters:
            if drafter.tap is not None:
                raise ValueError(
                    f"drafters: expected ones that can share a tree, got {type(drafter).__name__}, "
                    "which drafts alone"
                )
        asking = [drafter for drafter in drafters if drafter.side_nodes]
        listening = [drafter for drafter in drafters if drafter.listener is not None]
        for some, what in ((asking, "asks for side nodes"), (listening, "listens to layers")):
            if len(some) > 1:
                names = ", ".join(type(drafter).__name__ for drafter in some)
                raise ValueError(f"drafters: expected one that {what}, got {names}")
        self.drafters = list(drafters)
        self.listener = listening[0].listener if listening else None
        self.side_nodes = sum(drafter.side_nodes for drafter in drafters)
        self.calibration = together([drafter.calibration for drafter in drafters])

    def start(self, state: State) -> None:
        """Start each drafter."""
        for drafter in self.drafters:
            drafter.start(state)

    def join(self, state: State, rows: Rows) -> None:
        """Let each drafter take the rows that start."""
        for drafter in self.drafters:
            drafter.join(state, rows)

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Concatenate the proposals of all drafters; packing merges equal ones."""
        parts = [drafter.draft(state, budget) for drafter in self.drafters]
        shifted, before = [], 0
        for part in parts:
            shifted.append(torch.where(part.parents < 0, -1, part.parents + before))
            before += part.tokens.shape[1]
        return Proposals(
            tokens=torch.cat([part.tokens for part in parts], 1),
            parents=torch.cat(shifted, 1),
            scores=torch.cat([part.scores for part in parts], 1),
            valid=torch.cat([part.valid for part in parts], 1),
            source=torch.cat(
                [torch.full_like(part.source, at) for at, part in enumerate(parts)], 1
            ),
            side=next((part.side for part in parts if part.side is not None), None),
            spent=sum(part.spent for part in parts),
        )

    def observe(
        self, state: State, tree: TokenTree, accepted: Accepted, verified: Verified
    ) -> None:
        """Show each drafter the result of the round."""
        for drafter in self.drafters:
            drafter.observe(state, tree, accepted, verified)
