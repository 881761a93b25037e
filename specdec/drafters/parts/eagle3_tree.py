"""What an EAGLE-3 draft layer has seen behind the text: a tree that grows level by level.

    slots of a row of the target's cache, for L cached tokens:

    0 .................. L-2 | L-1     | L ...
    pairs of the text        | node 0  | drafted nodes, until the next draft

A pair is the target's state at one position and the token at the next one, and has the slot and the position of the
first. The newest pair, which ends in the row's root, is node 0 of the tree.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec_kernels import pack_bits

from ...model.tree_pass import Shared
from ...state import State
from .eagle3_model import Eagle3Model


class DraftTree:
    """Nodes of a draft, and what attention keeps of them."""

    def __init__(self, model: Eagle3Model, state: State) -> None:
        """Begin without nodes, behind the pairs of the text."""
        self.model, self.state = model, state
        self.layer = state.cache.shape[0]
        """The drafter's, behind those of the target."""
        self.newest = 0
        """How many nodes were added last."""
        self._seen: Tensor | None = (
            None  # [B, N, N], which nodes each one descends from, itself included
        )
        self._depth = state.roots[:0]
        self._levels = 0
        self._queries: Tensor | None = None
        self._keys_values: tuple[Tensor, Tensor] | None = None

    def add(self, embedded: Tensor, hidden: Tensor, parents: Tensor) -> Tensor:
        """Run the draft layer on a level of nodes; keys and values of the whole tree lie in the cache afterwards.

        Args:
            embedded: `[B, W, E]`, of their tokens.
            hidden: `[B, W, E]`, of each the state before its token.
            parents: `[B, W]` int64, the node of the level before that each one continues; -1 for node 0.

        Returns:
            `[B, W, E]`, their states.
        """
        first, count = len(self._depth) - self.newest, parents.shape[1]
        parents = parents + first if self._levels else parents
        self._depth = torch.cat([self._depth, torch.full_like(parents[0], self._levels)])
        self._levels, self.newest = self._levels + 1, count
        cache, rows = self.state.cache, self.state.rows
        itself = torch.eye(count, dtype=torch.bool, device=parents.device).expand(
            len(parents), -1, -1
        )
        if self._seen is None:
            self._seen = itself
        else:  # what its parent sees, and itself
            above = self._seen.take_along_dim(parents[..., None], 1)
            self._seen = F.pad(self._seen, (0, count))
            self._seen = torch.cat([self._seen, torch.cat([above, itself], 2)], 1)
        now = cache.open(
            pack_bits(self._seen), self._depth.expand(len(parents), -1), rows, behind=-1
        )
        now.shared = Shared(None, None)  # copies of a prompt have pairs of their own
        joined, positions = self.model.join(embedded, hidden), now.positions[:, -count:]
        q, k, v = self.model.project(joined, positions)
        if self._queries is not None and self._keys_values is not None:
            q = torch.cat([self._queries, q], 1)
            k, v = (torch.cat(both, 2) for both in zip(self._keys_values, (k, v), strict=True))
        self._queries, self._keys_values = q, (k, v)
        keys, values = cache.update(k, v, self.layer)
        # A pass has as many queries as the tree has nodes: those of earlier levels are asked again.
        attended = now.attend(q, keys, values, scale=q.shape[-1] ** -0.5, softcap=None, window=None)
        return self.model.finish(joined, hidden, attended[:, -count:])
