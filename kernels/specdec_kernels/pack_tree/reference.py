"""Packing: merges proposals of any kind into one tree that stores every shared prefix once (ReDrafter section 4.2.2).

A proposal is a token and a pointer to the proposal it continues:

    tokens   [ b  c  b  d ]        root a ─ b ─ c        two beams, "b c" and "b d", share b:
    parents  [-1  0 -1  2 ]               └ d            four proposals, three nodes

Beams, beam searches with parent pointers, chains, static trees and unions of them all have this form. Two proposals are
one node exactly if the tokens on their paths are equal; pointer doubling decides that in log2(depth) steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ancestors import ancestor_matrix, pack_bits


class PackedTree(NamedTuple):
    """A packed tree; node 0 is the root, parents come before their children, rows are padded to N nodes."""

    tokens: Tensor
    """`[B, N]` int64; padding repeats the root's token."""
    parents: Tensor
    """`[B, N]` int64; -1 for the root and for padding."""
    depth: Tensor
    """`[B, N]` int64; 0 for the root and for padding."""
    ancestors: Tensor
    """`[B, N, ceil(N / 64)]` int64 bit sets, self included."""
    sizes: Tensor
    """`[B]` int64, number of nodes without padding."""
    scores: Tensor
    """`[B, N]` float32, best score of the proposals merged into a node; 0 for the root, -inf for padding."""
    source: Tensor
    """`[B, N]` int64; label of the first proposal of a node; -1 for the root and for padding."""
    node_of: Tensor
    """`[B, K]` int64, the node of each proposal; -1 if it was invalid, too deep or over capacity."""
    dropped: Tensor
    """`[B]` int64, number of distinct nodes dropped for capacity."""


def pack_tree_reference(
    roots: Tensor,
    tokens: Tensor,
    parents: Tensor,
    scores: Tensor,
    source: Tensor,
    valid: Tensor,
    *,
    capacity: int,
    max_depth: int,
    row_depth: Tensor | None,
    width: int | None,
) -> PackedTree:
    """Reference implementation; arguments as in `pack_tree`, all given."""
    batch, count = tokens.shape
    device = tokens.device
    doublings = max_depth.bit_length()

    # The root is entry 0 and its own parent, so that every path ends there. Invalid entries are their own parents too,
    # so paths through them do not.
    entry = torch.arange(count + 1, device=device)
    valid = valid & (parents >= -1) & (parents < entry[:-1])
    tokens = torch.cat([roots[:, None], tokens], 1)  # [B, K+1]
    source = F.pad(source, (1, 0), value=-1)
    scores = F.pad(scores.float().nan_to_num(-torch.inf, torch.inf, -torch.inf), (1, 0))
    parents = F.pad(torch.where(valid, parents + 1, entry[1:]), (1, 0))

    # One sweep up the paths finds whether they end at the root, their lengths, and equal paths.
    up, step = parents, entry.clamp(max=1)  # the root is no step away from itself
    depth = step.expand(batch, -1)
    same = (tokens[:, :, None] == tokens[:, None]) & (step[:, None] == step)  # [B, K+1, K+1]
    for _ in range(doublings):
        above = same.gather(1, up[:, :, None].expand_as(same))
        same = same & above.gather(2, up[:, None].expand_as(same))
        depth = depth + depth.gather(1, up)
        up = up.gather(1, up)
    limit = max_depth if row_depth is None else row_depth.clamp(0, max_depth)[:, None]
    valid = (up == 0) & (depth <= limit)  # a path that has not reached the root is too deep

    # A node is the first of its equal proposals, with the best of their scores.
    same = same & valid[:, :, None] & valid[:, None]
    first = torch.where(same, entry, count).amin(2)  # [B, K+1]
    node = valid & (first == entry)
    scores = torch.where(same, scores[:, None], -torch.inf).amax(2)
    parents = first.gather(1, parents)

    kept = node
    if count + 1 > capacity:
        # No node outranks its parent, and ties go to the earlier entry, so ancestors are always kept.
        lowest = torch.finfo(torch.float32).min  # above entries that are not nodes
        rank_by, up = torch.where(node, scores.clamp(min=lowest), -torch.inf), parents
        rank_by[:, 0] = torch.inf
        for _ in range(doublings):
            rank_by = torch.minimum(rank_by, rank_by.gather(1, up))
            up = up.gather(1, up)
        order = rank_by.argsort(dim=1, descending=True, stable=True)
        kept = node.scatter(1, order[:, capacity:], False)

    sizes = kept.sum(1)
    if width is None:
        width = int(sizes.max())
    slot = torch.where(kept, kept.cumsum(1) - 1, width)  # entries without a node go to a spare slot
    node_of = slot.gather(1, first)
    node_of = torch.where(valid & (node_of < width), node_of, -1)
    parents = torch.where(entry > 0, node_of.gather(1, parents), -1)

    fields = torch.stack([tokens, parents, depth, source], 1)  # [B, 4, K+1]
    padding = torch.tensor([0, -1, 0, -1], device=device)[:, None]
    padded = padding.repeat(batch, 1, width + 1)
    padded[:, 0] = roots[:, None]
    padded.scatter_(2, slot[:, None].expand(-1, 4, -1), fields)
    tokens, parents, depth, source = padded[..., :width].unbind(1)
    best = torch.full((batch, width + 1), -torch.inf, device=device).scatter_(1, slot, scores)
    return PackedTree(
        tokens=tokens,
        parents=parents,
        depth=depth,
        ancestors=pack_bits(ancestor_matrix(parents)),
        sizes=sizes,
        scores=best[:, :width],
        source=source,
        node_of=node_of[:, 1:],
        dropped=node.sum(1) - sizes,
    )
