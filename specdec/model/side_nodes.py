"""Side nodes in the pass of a tree: behind its nodes, seen by nothing in front of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec_kernels import pack_bits

from ..tree import TokenTree
from .passed import SideNodes


class PassNodes(NamedTuple):
    """All nodes of a pass: those of the tree, then the side nodes."""

    tokens: Tensor
    """`[B, N + S]` int64."""
    depth: Tensor
    """`[B, N + S]` int64."""
    ancestors: Tensor
    """`[B, N + S, ceil((N + S) / 64)]` int64 bit sets."""


def pass_nodes(tree: TokenTree, side: SideNodes | None) -> PassNodes:
    """Put side nodes behind a tree of N nodes."""
    if side is None:
        return PassNodes(tree.tokens, tree.depth, tree.ancestors)
    batch, nodes = tree.tokens.shape
    sees = F.pad(side.sees, (nodes, 0))  # [S, N + S]
    sees[:, 0] = True  # the root
    bits = pack_bits(sees)
    words = bits.shape[-1] - tree.ancestors.shape[-1]
    return PassNodes(
        tokens=torch.cat([tree.tokens, side.tokens], 1),
        depth=torch.cat([tree.depth, side.depth], 1),
        ancestors=torch.cat([F.pad(tree.ancestors, (0, words)), bits.expand(batch, -1, -1)], 1),
    )
