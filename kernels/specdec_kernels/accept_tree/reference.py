"""Greedy acceptance in a deduplicated tree, as a test of each node instead of a walk.

A node is right if its token equals the target's token at its parent, and accepted if it and all its ancestors are right.
No two children of a node share a token, so at most one child is right, and the accepted nodes form a chain. If siblings
do share a token, only the first of them counts as right, as in a walk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ancestors import pack_bits


def accept_tree_reference(
    tokens: Tensor, parents: Tensor, depth: Tensor, ancestors: Tensor, sizes: Tensor, picked: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Reference implementation; arguments and results as in `accept_tree`."""
    batch, nodes = tokens.shape
    node = torch.arange(nodes, device=tokens.device)
    right = ((tokens == picked.gather(1, parents.clamp(min=0))) | (node == 0)) & (
        node < sizes[:, None]
    )
    siblings = (parents[:, :, None] == parents[:, None]) & right[:, None]  # [B, N, N]
    right &= ~siblings.tril(-1).any(-1)  # none before it

    wrong = pack_bits(~right)[:, None]  # [B, 1, words]
    accepted = right & ((ancestors & wrong) == 0).all(-1)  # [B, N]

    # Depths along a chain are distinct, so they are indices in the path. Other nodes go to a spare slot.
    path = torch.full((batch, nodes + 1), -1, dtype=torch.int64, device=tokens.device)
    path.scatter_(1, torch.where(accepted, depth, nodes), node.expand(batch, -1))
    path = path[:, :nodes]
    lengths = accepted.sum(1) - 1
    last = path.amax(1, keepdim=True).clamp(min=0)  # indices ascend along a path
    next_tokens = picked.gather(1, last)[:, 0]
    return path, lengths, next_tokens.where(lengths >= 0, -1)
