"""`TokenTree` and `Accepted`: the tree that a round verifies, and the accepted path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec_kernels import PackedTree, pack_bits


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Tokens to verify in one pass of the target, one tree per row.

    Node 0 is the root: the newest certain token, whose keys and values are not cached yet. Parents come before their
    children, no two children of a node share a token, and rows are padded to the widest tree.
    """

    tokens: Tensor
    """`[B, N]` int64."""
    parents: Tensor
    """`[B, N]` int64, index of each node's parent; -1 for the root and for padding."""
    depth: Tensor
    """`[B, N]` int64, 0 at the root; a node sits at position `prefix + depth`."""
    ancestors: Tensor
    """`[B, N, ceil(N / 64)]` int64 bit sets of ancestors, self included."""
    sizes: Tensor
    """`[B]` int64, number of nodes without padding."""
    scores: Tensor
    """`[B, N]` float32, cumulative draft log-probability."""
    source: Tensor
    """`[B, N]` int64, the beam or drafter that proposed the node; -1 for the root."""

    @classmethod
    def chain(cls, tokens: Tensor) -> TokenTree:
        """Create a tree with one branch.

        Args:
            tokens: `[B, N]` int64, each token following the one before it.
        """
        batch, nodes = tokens.shape
        index = torch.arange(nodes, device=tokens.device)
        before = index - 1
        return cls(
            tokens=tokens,
            parents=before.expand(batch, -1),
            depth=index.expand(batch, -1),
            ancestors=pack_bits(index[:, None] >= index).expand(batch, -1, -1),
            sizes=torch.full((batch,), nodes, device=tokens.device),
            scores=torch.zeros(batch, nodes, device=tokens.device),
            source=before.clamp(max=0).expand(batch, -1),
        )

    @classmethod
    def from_packed(cls, packed: PackedTree) -> TokenTree:
        """Create a tree from the result of `pack_tree`."""
        return cls(**{name: getattr(packed, name) for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Accepted:
    """The accepted path of each row."""

    path: Tensor
    """`[B, N]` int64, the accepted nodes from the root down, -1 padded."""
    lengths: Tensor
    """`[B]` int64, accepted nodes below the root; a round emits one token more than that."""
    next_tokens: Tensor
    """`[B]` int64, the target's own token after the last accepted node: the next root."""
