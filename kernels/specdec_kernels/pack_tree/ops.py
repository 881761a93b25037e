"""The public functions: check their arguments, then run the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import PackedTree, pack_tree_reference


def pack_tree(
    roots: Tensor,
    tokens: Tensor,
    parents: Tensor,
    scores: Tensor,
    *,
    capacity: int,
    max_depth: int,
    source: Tensor | None = None,
    valid: Tensor | None = None,
    row_depth: Tensor | None = None,
    width: int | None = None,
) -> PackedTree:
    """Merge proposals into one tree per row (ReDrafter section 4.2.2, for trees of any origin).

    Proposals are merged by (parent node, token). Nodes keep the order in which they first appear, so for beams in
    descending order the best path comes first and contiguous.

    Args:
        roots: `[B]` int64, the guaranteed token of each row.
        tokens: `[B, K]` int64, one per proposal; K may be 0.
        parents: `[B, K]` int64, the earlier proposal that each one continues, -1 for the root.
        scores: `[B, K]` float, cumulative draft log-probabilities. A score above its parent's counts as its parent's.
        capacity: most nodes per tree, root included. Over it, the nodes of lowest score go, later ones first among
            equals; a node never stays without its ancestors.
        max_depth: deepest node that can occur; deeper proposals are dropped.
        source: `[B, K]` int64 labels; None for the proposal's own index.
        valid: `[B, K]` bool; None for all. What continues an invalid proposal is invalid too.
        row_depth: `[B]` int64, a tighter depth per row; None for `max_depth` everywhere.
        width: N of the result; None for the widest row, which is read from the device.

    Returns:
        The tree, the node of every proposal, and the number of nodes dropped for capacity.

    Raises:
        ValueError: if shapes do not fit, or `capacity`, `max_depth` or `width` is out of range.
    """
    if tokens.ndim != 2 or roots.shape != tokens.shape[:1]:
        raise ValueError(
            "roots, tokens: expected shapes [B] and [B, K], "
            f"got {list(roots.shape)} and {list(tokens.shape)}"
        )
    for name, value in (
        ("parents", parents), ("scores", scores), ("source", source), ("valid", valid)
    ):  # fmt: skip
        if value is not None and value.shape != tokens.shape:
            raise ValueError(
                f"{name}: expected shape {list(tokens.shape)}, got {list(value.shape)}"
            )
    if capacity < 1:
        raise ValueError(f"capacity: expected at least 1 node, got {capacity}")
    if max_depth < 0:
        raise ValueError(f"max_depth: expected 0 or more, got {max_depth}")
    if width is not None and width < min(capacity, tokens.shape[1] + 1):
        raise ValueError(
            f"width: expected at least min(capacity, K + 1) = "
            f"{min(capacity, tokens.shape[1] + 1)}, got {width}"
        )
    if source is None:
        source = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    if valid is None:
        valid = torch.ones_like(tokens, dtype=torch.bool)
    return pack_tree_reference(
        roots,
        tokens,
        parents,
        scores,
        source,
        valid,
        capacity=capacity,
        max_depth=max_depth,
        row_depth=row_depth,
        width=width,
    )


def beam_parents(beams: Tensor) -> Tensor:
    """Write beams as proposals: each token continues the one before it in its own beam.

    Args:
        beams: `[B, W, L]`, the L drafted tokens of each beam, without the root.

    Returns:
        `[B, W * L]` int64 parents for `pack_tree`, whose tokens are `beams.flatten(1)`.
    """
    batch, _, length = beams.shape
    index = torch.arange(beams[0].numel(), device=beams.device)
    return torch.where(index % length == 0, -1, index - 1).expand(batch, -1)


def pack_beams(
    beams: Tensor, scores: Tensor | None = None, *, capacity: int | None = None
) -> tuple[PackedTree, Tensor]:
    """Pack final beams that all start with their row's guaranteed token (ReDrafter section 4.2.2).

    Args:
        beams: `[B, W, C]` int64; column 0 holds the same token in every beam of a row.
        scores: `[B, W, C-1]` cumulative draft log-probabilities; None for all equal.
        capacity: most nodes per tree; None for as many as there can be.

    Returns:
        The tree, and the unpacker `[B, W, C]` int64: `tree.tokens` gathered by it are the beams (-1 where the
        capacity cut a beam off).

    Raises:
        ValueError: if `beams` or `scores` has the wrong shape.
    """
    if beams.ndim != 3 or beams.shape[1] < 1 or beams.shape[2] < 1:
        raise ValueError(f"beams: expected shape [B, W >= 1, C >= 1], got {list(beams.shape)}")
    batch, width, length = beams.shape
    drafted = beams[:, :, 1:]
    if scores is None:
        scores = torch.zeros(drafted.shape, device=beams.device)
    tree = pack_tree(
        beams[:, 0, 0],
        drafted.flatten(1),
        beam_parents(drafted),
        scores.flatten(1),
        capacity=width * (length - 1) + 1 if capacity is None else capacity,
        max_depth=length - 1,
        source=torch.arange(width, device=beams.device)
        .repeat_interleave(length - 1)
        .expand(batch, -1),
    )
    unpacker = tree.node_of.unflatten(1, (width, length - 1))
    return tree, torch.nn.functional.pad(unpacker, (1, 0), value=0)
