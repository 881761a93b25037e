"""The tree of an EAGLE-3 draft: it grows level by level, its keys and values behind those of the text.

    slots of a row of the target's cache, for L cached tokens:

    0 .................. L-2 | L-1     | L ...
    pairs of the text        | node 0  | drafted nodes, until the next draft

A pair is the target's hidden state at one position and the token at the next. It has the slot and position of the hidden
state. The newest pair ends in the row's root and is node 0 of the tree.
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
    """Nodes of a draft and their keys and values."""

    def __init__(self, model: Eagle3Model, state: State) -> None:
        """Start with no nodes, behind the pairs of the text."""
        self.model, self.state = model, state
        self.layer = state.cache.shape[0]
        """Index of the drafter's cache layer, behind the target's."""
        self.newest = 0
        """Number of nodes added last."""
        self._seen: Tensor | None = None  # [B, N, N], ancestors of each node, itself included
        self._depth = state.roots[:0]
        self._levels = 0
        self._queries: Tensor | None = None
        self._keys_values: tuple[Tensor, Tensor] | None = None

    def add(self, embedded: Tensor, hidden: Tensor, parents: Tensor) -> Tensor:
        """Run the draft layer on one level of nodes; writes the keys and values of the whole tree to the cache.

        Args:
            embedded: `[B, W, E]`, embeddings of their tokens.
            hidden: `[B, W, E]`, hidden state before each token.
            parents: `[B, W]` int64, parent within the previous level; -1 for node 0.

        Returns:
            `[B, W, E]`, output hidden states.
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
        else:  # the parent's ancestors and the node itself
            above = self._seen.take_along_dim(parents[..., None], 1)
            self._seen = F.pad(self._seen, (0, count))
            self._seen = torch.cat([self._seen, torch.cat([above, itself], 2)], 1)
        now = cache.open(
            pack_bits(self._seen), self._depth.expand(len(parents), -1), rows, behind=-1
        )
        now.shared = Shared(None, None)  # copies of a prompt have separate pairs
        joined, positions = self.model.join(embedded, hidden), now.positions[:, -count:]
        q, k, v = self.model.project(joined, positions)
        if self._queries is not None and self._keys_values is not None:
            q = torch.cat([self._queries, q], 1)
            k, v = (torch.cat(both, 2) for both in zip(self._keys_values, (k, v), strict=True))
        self._queries, self._keys_values = q, (k, v)
        keys, values = cache.update(k, v, self.layer)
        # A pass needs one query per tree node: earlier levels are computed again.
        attended = now.attend(q, keys, values, scale=q.shape[-1] ** -0.5, softcap=None, window=None)
        return self.model.finish(joined, hidden, attended[:, -count:])
