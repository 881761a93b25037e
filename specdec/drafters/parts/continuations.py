"""What followed in several places, as one tree: continuations that begin alike share nodes, whose weights add up.

All at once on the host, in numpy: sorted by their tokens, continuations with a common beginning lie side by side, and
a node is a run of them.
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

        What follows a node is likely by the weight of the continuations that go that way, as a share of all that leave
        the node and of a rest, for what none of them says: `n ** spread`, where n of them leave it.

        Args:
            continuations: `[H, L]` token ids; -1 where there is none, and from there on.
            weights: `[H, L]`, odds of each token where it is the only one known and all before it were right.
            spread: 0 where many continuations are as good as one good one, higher where they may all be wrong.
        """
        hits, length = continuations.shape
        if not (continuations[:, :1] >= 0).any():
            return cls.empty()
        # As bytes, rows of big-endian numbers sort like their tokens.
        keys = np.ascontiguousarray(continuations + 1, ">u4").view(f"S{4 * length}")[:, 0]
        order = keys.argsort(kind="stable")
        rows, weights = continuations[order], weights[order]
        there = rows >= 0
        begins = there.copy()  # [H, L], where a node is met for the first time
        begins[1:] &= np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
        number = begins.ravel().cumsum().reshape(hits, length) - 1
        # A row passes through the node that began last in its column.
        node = np.maximum.accumulate(np.where(begins, number, -1), axis=0)
        at, column = begins.nonzero()
        count = len(at)
        parents = np.where(column > 0, node[at, column - 1], -1)
        taken = np.bincount(node[there], weights[there], count)
        # The last entry is the root's, which is every first node's parent, -1.
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
        """Return a tree of nothing but its root."""
        none = np.empty(0, np.int64)
        return cls(none, none, none, np.empty(0))

    def best(self, most: int, lowest: float) -> Trie:
        """Keep at most `most` nodes of the highest scores, none below `lowest`; ties go to the earlier one.

        No child may outrank its parent.
        """
        kept = (-self.scores).argsort(kind="stable")[:most]
        kept = np.sort(kept[self.scores[kept] >= lowest])
        places = np.full(len(self.tokens) + 1, -1)
        places[kept] = np.arange(len(kept))
        parents = places[self.parents[kept]]
        return Trie(self.tokens[kept], parents, self.depth[kept], self.scores[kept])


def proposals_of(tries: Sequence[Trie], like: Tensor, width: int, spent: float) -> Proposals:
    """Make proposals of one tree per row, in one upload.

    Args:
        tries: of at most `width` nodes each.
        like: any tensor on the device that the proposals go to.
        width: K where the device is not looked at in a round; else K is the widest tree's.
        spent: what they cost, in milliseconds.
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
    # So little is copied aside at once: the host does not wait for the device.
    uploaded = torch.from_numpy(packed).to(like.device, non_blocking=True)
    tokens, parents = uploaded[:2].long()
    scores, valid = uploaded[2].view(torch.float32), uploaded[3].bool()
    return Proposals(tokens, parents, scores, valid, torch.zeros_like(tokens), spent=spent)
