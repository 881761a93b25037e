"""Ancestor sets as bits: the form in which packing, attention and acceptance share a tree's shape.

Bit `j` of node `i`'s words is set if node `j` is `i` itself or one of its ancestors. A word is an int64 whose bit 63 is
its sign, so words are only combined with `&`, `|` and shifts, never compared by size.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 64


def ancestor_matrix(parents: Tensor) -> Tensor:
    """Expand parent pointers into the ancestor-or-self relation.

    Args:
        parents: `[B, N]` int64, index of each node's parent, -1 for none.

    Returns:
        `[B, N, N]` bool: entry `[b, i, j]` is True if `j` is `i` or an ancestor of `i`.
    """
    count = parents.shape[1]
    nodes = torch.arange(count, device=parents.device)
    itself = torch.eye(count, dtype=torch.bool, device=parents.device)
    reach = ((nodes == parents[..., None]) | itself).float()  # [B, N, N]
    # Each squaring doubles the distance covered; N nodes are never further apart than N - 1.
    for _ in range((parents.shape[1] - 1).bit_length()):
        reach = (reach @ reach).clamp_(max=1)
    return reach > 0


def pack_bits(members: Tensor) -> Tensor:
    """Pack the last dimension of a bool tensor into int64 words.

    Args:
        members: `[..., M]` bool.

    Returns:
        `[..., ceil(M / 64)]` int64.
    """
    size = members.shape[-1]
    padded = torch.nn.functional.pad(members, (0, -size % WORD))
    weights = 1 << torch.arange(WORD, device=members.device)
    words: Tensor = (padded.unflatten(-1, (-1, WORD)) * weights).sum(-1)
    return words


def unpack_bits(words: Tensor, size: int) -> Tensor:
    """Invert `pack_bits`.

    Args:
        words: `[..., W]` int64.
        size: number of members to return, at most `64 * W`.

    Returns:
        `[..., size]` bool.
    """
    member = torch.arange(size, device=words.device)
    if size > WORD:
        words, member = words[..., member // WORD], member % WORD
    return ((words >> member) & 1).bool()
