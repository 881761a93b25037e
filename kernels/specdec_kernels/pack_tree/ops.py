"""The public functions `pack_tree` and `pack_beams`, and their registered op."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ancestors import WORD
from ..checks import MAX_NODES, check_integers, check_shape
from ..dispatch import Impl, chooses_kernel, register
from .reference import PackedTree, pack_tree_reference

# Most proposals per row that one program of the kernel holds.
MAX_PROPOSALS = 1024


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
    impl: Impl = "auto",
) -> PackedTree:
    """Merge proposals into one tree per row (ReDrafter section 4.2.2, for trees of any origin).

    Proposals are merged by (parent node, token). Nodes keep the order in which they first appear, so for beams in
    descending order the best path comes first and contiguous.

    Args:
        roots: `[B]` int64, the certain token of each row.
        tokens: `[B, K]` int64, one per proposal; K may be 0.
        parents: `[B, K]` int64, index of the earlier proposal that each one continues, -1 for the root. Any other parent
            makes a proposal invalid.
        scores: `[B, K]` float, cumulative draft log-probabilities. A score above its parent's is lowered to it; NaN
            counts as -inf.
        capacity: most nodes per tree, root included. Excess nodes are dropped, those of lowest score first, and later
            ones first among equals; a kept node's ancestors are kept too.
        max_depth: largest depth of a node; deeper proposals are dropped.
        source: `[B, K]` int64 labels; None for the proposal's index.
        valid: `[B, K]` bool; None for all. Proposals that continue an invalid one are invalid too.
        row_depth: `[B]` int64, a smaller depth limit per row; None for `max_depth`.
        width: N of the result, at least `min(capacity, K + 1)`. None is exactly that in the kernel, which never blocks
            the host; in the reference it is the widest row, which the host reads.
        impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere). The kernel takes at most 1024
            proposals and 256 nodes.

    Returns:
        The tree, the node of every proposal, and the number of nodes dropped for capacity.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if shapes do not fit, or `capacity`, `max_depth`, `width`, a device or `impl` is out of range.
    """
    if tokens.ndim != 2 or roots.shape != tokens.shape[:1]:
        raise ValueError(
            "roots, tokens: expected shapes [B] and [B, K], "
            f"got {list(roots.shape)} and {list(tokens.shape)}"
        )
    batch, count = tokens.shape
    for name, value in (
        ("parents", parents), ("scores", scores), ("source", source), ("valid", valid)
    ):  # fmt: skip
        if value is not None:
            check_shape(name, value, (batch, count))
    if row_depth is not None:
        check_shape("row_depth", row_depth, (batch,))
    check_integers(roots=roots, tokens=tokens, parents=parents, source=source, row_depth=row_depth)
    if not scores.is_floating_point():
        raise TypeError(f"scores: expected floating point, got {scores.dtype}")
    if valid is not None and valid.dtype != torch.bool:
        raise TypeError(f"valid: expected torch.bool, got {valid.dtype}")
    if capacity < 1:
        raise ValueError(f"capacity: expected at least 1 node, got {capacity}")
    if max_depth < 0:
        raise ValueError(f"max_depth: expected 0 or more, got {max_depth}")
    most = min(capacity, count + 1)
    if width is not None and width < most:
        raise ValueError(f"width: expected at least min(capacity, K + 1) = {most}, got {width}")
    if chooses_kernel(impl, roots, tokens, parents, scores, source, valid, row_depth):
        width = most if width is None else width
        if count > MAX_PROPOSALS:
            raise ValueError(
                f"tokens: expected at most {MAX_PROPOSALS} proposals in the kernel, got {count}"
            )
        if width > MAX_NODES:
            raise ValueError(
                f"capacity, width: expected at most {MAX_NODES} nodes in the kernel, got {width}"
            )
        tensors = (roots, tokens, parents, scores, source, valid, row_depth)
        return PackedTree(*_pack_tree(*tensors, capacity, max_depth, width))
    if source is None:
        source = torch.arange(count, device=tokens.device).expand_as(tokens)
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
    """Return the parents that describe beams as proposals: each token continues the one before it in its beam.

    Args:
        beams: `[B, W, L]`, the L drafted tokens of each beam, without the root.

    Returns:
        `[B, W * L]` int64 parents for `pack_tree`, whose tokens are `beams.flatten(1)`.
    """
    batch, _, length = beams.shape
    index = torch.arange(beams[0].numel(), device=beams.device)
    return torch.where(index % length == 0, -1, index - 1).expand(batch, -1)


def pack_beams(
    beams: Tensor,
    scores: Tensor | None = None,
    *,
    capacity: int | None = None,
    impl: Impl = "auto",
) -> tuple[PackedTree, Tensor]:
    """Pack final beams that start with their row's certain token (ReDrafter section 4.2.2).

    Args:
        beams: `[B, W, C]` int64; column 0 has the same token in every beam of a row.
        scores: `[B, W, C-1]` cumulative draft log-probabilities; None for equal scores.
        capacity: most nodes per tree; None for no limit.
        impl: as in `pack_tree`.

    Returns:
        The tree, and the unpacker `[B, W, C]` int64: gathering `tree.tokens` by it gives the beams; -1 where the
        capacity cut a beam off.

    Raises:
        ValueError: if `beams` or `scores` has the wrong shape, or as in `pack_tree`.
    """
    if beams.ndim != 3 or beams.shape[1] < 1 or beams.shape[2] < 1:
        raise ValueError(f"beams: expected shape [B, W >= 1, C >= 1], got {list(beams.shape)}")
    batch, width, length = beams.shape
    drafted = beams[:, :, 1:]
    if scores is None:
        scores = torch.zeros(drafted.shape, device=beams.device)
    check_shape("scores", scores, drafted.shape)
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
        impl=impl,
    )
    unpacker = tree.node_of.unflatten(1, (width, length - 1))
    return tree, torch.nn.functional.pad(unpacker, (1, 0), value=0)


def _launch(*inputs: Tensor | int | None) -> tuple[Tensor, ...]:
    from .kernel import launch_pack_tree

    return launch_pack_tree(*inputs)  # type: ignore[arg-type]


def _fake(
    roots: Tensor,
    tokens: Tensor,
    parents: Tensor,
    scores: Tensor,
    source: Tensor | None,
    valid: Tensor | None,
    row_depth: Tensor | None,
    capacity: int,
    max_depth: int,
    width: int,
) -> tuple[Tensor, ...]:
    batch, count = tokens.shape
    nodes = (batch, width)
    return (
        *(tokens.new_empty(nodes) for _ in range(3)),
        tokens.new_empty((*nodes, -(-width // WORD))),
        tokens.new_empty(batch),
        tokens.new_empty(nodes, dtype=torch.float32),
        tokens.new_empty(nodes),
        tokens.new_empty((batch, count)),
        tokens.new_empty(batch),
    )


_pack_tree = register(
    "pack_tree(Tensor roots, Tensor tokens, Tensor parents, Tensor scores, Tensor? source, Tensor? valid,"
    " Tensor? row_depth, SymInt capacity, SymInt max_depth, SymInt width)"
    " -> (Tensor tokens, Tensor parents, Tensor depth, Tensor ancestors, Tensor sizes, Tensor scores,"
    " Tensor source, Tensor node_of, Tensor dropped)",
    _launch,
    _fake,
)
