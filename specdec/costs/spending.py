"""`Spending`: the draft budget of each round, from the cost table and the guard."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..drafters.protocol import Budget, DraftCost, Drafter, Proposals
from ..limits import DEFAULT_NODES
from ..state import Emitted, State
from ..tree import TokenTree
from .guard import Guard
from .prices import price
from .table import Costs, parts_of


class Spending:
    """The budgets of one call."""

    def __init__(
        self,
        drafter: Drafter,
        costs: Costs | None,
        *,
        layers: int,
        max_nodes: int | None = None,
        row_nodes: Sequence[int] | None = None,
        guarded: bool = True,
    ) -> None:
        """Create the budgets of a call.

        Args:
            drafter: the drafter.
            costs: cost table of the target and this drafter; None for no prices and no guard.
            layers: number of the target's layers.
            max_nodes: most nodes of a row's tree; None takes the number from the cost table.
            row_nodes: most nodes per text.
            guarded: whether drafting pauses while it does not pay.
        """
        self.drafter, self.costs, self.layers = drafter, costs, layers
        self.max_nodes, self.row_nodes = max_nodes, row_nodes
        self.guard, self._guarded = Guard(), guarded
        self._terms: dict[int, Budget] = {}

    @property
    def most_nodes(self) -> int:
        """Most nodes of any row's tree: the limit of a round with one row."""
        return self.terms(1).nodes

    def budget(self, state: State) -> Budget:
        """Return the next round's budget."""
        terms = self.terms(len(state.rows.host))
        nodes, row_nodes = terms.nodes, None
        if self.row_nodes is not None:
            most = [self.row_nodes[row] for row in state.rows.host]
            nodes = min(nodes, max(most))
            row_nodes = torch.tensor(most).to(state.text.ids.device, non_blocking=True)
        if self.guard.resting:
            nodes = 1
        depth = min(max(state.remaining), nodes) - 1
        return terms._replace(
            nodes=nodes, depth=depth, row_depth=state.row_depth, row_nodes=row_nodes
        )

    def count(self, proposals: Proposals, tree: TokenTree, emitted: list[Emitted]) -> None:
        """Report a round's tokens, and its cost by the table, to the guard."""
        if self.costs is None or not self._guarded:
            return
        rows, nodes = tree.tokens.shape
        side = 0 if proposals.side is None else proposals.side.tokens.shape[1]
        cost = self.costs.line.ms(rows * (nodes + side))
        if proposals.shallow is not None:  # the target runs only the other layers
            cost *= 1 - proposals.shallow.layers / self.layers
        if nodes > 1:
            cost += self.costs.tree
        gained = sum(len(e.tokens) for e in emitted)
        plain = rows * (cost + proposals.spent) / self.costs.line.ms(rows)
        self.guard.count(gained, plain, rows, drafted=nodes > 1)

    def terms(self, rows: int) -> Budget:
        """Return the budget of a round with this many rows; its depths are not set."""
        if rows not in self._terms:
            self._terms[rows] = self._priced(rows)
        return self._terms[rows]

    def _priced(self, rows: int) -> Budget:
        unknown = torch.zeros(rows, dtype=torch.int64)
        if self.costs is None or self.drafter.calibration is None:
            return Budget(self.max_nodes or DEFAULT_NODES, 0, unknown)
        line = self.costs.line
        now = price(line, self.drafter.calibration.rate, rows)
        longer = line.ms(rows) / line.ms(1)
        return Budget(
            self.max_nodes or now.nodes,
            0,
            unknown,
            width=now.width,
            node_price=now.node,
            ms_price=now.per_ms,
            costs={
                part: DraftCost(cost.fixed, longer * cost.step)
                for part, cost in self.costs.of(parts_of(self.drafter)).items()
            },
        )
