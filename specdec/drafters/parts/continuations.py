"""Merges continuations of several occurrences into one tree; equal beginnings share nodes, whose weights add up.

Runs on the host in numpy: after sorting by tokens, continuations with a common beginning are adjacent, and a node is a
run of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specdec_kernels.dispatch import host_may_look

from ..protocol import Proposals

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Trie(NamedTuple):
    """Nodes of a tree, without its root; parents come before their children."""

    tokens: Ints
    """`[K]`."""
    parents: Ints
    """`[K]`, index of each node's parent; -1 for the root."""
    depth: Ints
    """`[K]`, from 1."""
    scores: Floats
    """`[K]`, cumulative log-probability."""

    @classmethod
    def of(cls, continuations: Ints, weights: Floats, spread: float = 0.0) -> Trie:
        """Merge continuations.

        The probability of a child is the weight of the continuations through it, divided by the weight of all n
        continuations that leave the node plus `n ** spread` for tokens that none of them has.

        Args:
            continuations: `[H, L]` token ids; -1 from a continuation's end on.
            weights: `[H, L]`, odds of each token if it were the only continuation and all tokens before it were right.
            spread: how the weight of "none of them" grows with n; 0 keeps it constant.
        """
        hits, length = continuations.shape
        if not (continuations[:, :1] >= 0).any():
            return cls.empty()
        # Rows of big-endian numbers, seen as bytes, sort like their tokens.
        keys = np.ascontiguousarray(continuations + 1, ">u4").view(f"S{4 * length}")[:, 0]
        order = keys.argsort(kind="stable")
        rows, weights = continuations[order], weights[order]
        there = rows >= 0
        begins = there.copy()  # [H, L], True where a node occurs for the first time
        begins[1:] &= np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
        number = begins.ravel().cumsum().reshape(hits, length) - 1
        # A row passes through the last node that began in its column.
        node = np.maximum.accumulate(np.where(begins, number, -1), axis=0)
        at, column = begins.nonzero()
        count = len(at)
        parents = np.where(column > 0, node[at, column - 1], -1)
        taken = np.bincount(node[there], weights[there], count)
        # The last entry is the root's: the parent of first nodes, -1.
        before = node[:, :-1][there[:, 1:]]
        leaving = np.append(
            np.bincount(before, weights[:, 1:][there[:, 1:]], count), weights[there[:, 0], 0].sum()
        )
        rest = np.append(np.bincount(before, minlength=count), there[:, 0].sum()) ** spread
        steps = np.log(taken / (leaving + rest)[parents])
        scores = steps[node].cumsum(axis=1)[begins]
        return cls(rows[begins], parents, column + 1, scores)

    @classmethod
    def empty(cls) -> Trie:
        """Return a tree without nodes below its root."""
        none = np.empty(0, np.int64)
        return cls(none, none, none, np.empty(0))

    def best(self, most: int, lowest: float) -> Trie:
        """Keep the `most` nodes with the highest scores, none below `lowest`; ties go to the earlier node.

        No child's score may exceed its parent's.
        """
        kept = (-self.scores).argsort(kind="stable")[:most]
        kept = np.sort(kept[self.scores[kept] >= lowest])
        places = np.full(len(self.tokens) + 1, -1)
        places[kept] = np.arange(len(kept))
        parents = places[self.parents[kept]]
        return Trie(self.tokens[kept], parents, self.depth[kept], self.scores[kept])


def proposals_of(tries: Sequence[Trie], like: Tensor, width: int, spent: float) -> Proposals:
    """Make proposals from one tree per row, with one copy to the device.

    Args:
        tries: one tree per row, of at most `width` nodes.
        like: any tensor on the proposals' device.
        width: K on a device that the host does not read during a round; elsewhere K is the widest tree's size.
        spent: cost of the draft in milliseconds.
    """
    if host_may_look(like):
        width = max(len(trie.tokens) for trie in tries)
    packed = np.zeros((4, len(tries), width), np.int32)
    packed[1] = -1
    for row, trie in enumerate(tries):
        count = len(trie.tokens)
        packed[:2, row, :count] = trie.tokens, trie.parents
        packed[2, row, :count] = trie.scores.astype(np.float32).view(np.int32)
        packed[3, row, :count] = 1
    # A copy this small does not block the host.
    uploaded = torch.from_numpy(packed).to(like.device, non_blocking=True)
    tokens, parents = uploaded[:2].long()
    scores, valid = uploaded[2].view(torch.float32), uploaded[3].bool()
    return Proposals(tokens, parents, scores, valid, torch.zeros_like(tokens), spent=spent)
