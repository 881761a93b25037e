"""The public function `accept_tree` and its registered op."""

from __future__ import annotations

from torch import Tensor

from ..ancestors import WORD
from ..checks import MAX_NODES, check_integers, check_shape
from ..dispatch import Impl, chooses_kernel, register
from .reference import accept_tree_reference


def accept_tree(
    tokens: Tensor,
    parents: Tensor,
    depth: Tensor,
    ancestors: Tensor,
    sizes: Tensor,
    picked: Tensor,
    *,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the longest path on which each token equals the target's token at its parent.

    Args:
        tokens: `[B, N]` int64, a deduplicated tree from `pack_tree`: parents come before their children. Of siblings
            with the same token only the first counts. At most 256 nodes in the kernel.
        parents: `[B, N]` int64, index of each node's parent; -1 for the root.
        depth: `[B, N]` int64, 0 at the root.
        ancestors: `[B, N, ceil(N / 64)]` int64 bit sets, self included.
        sizes: `[B]` int64, nodes per row; later ones are never accepted. 0 for a row of padding.
        picked: `[B, N]` int64, the target's token after each node.
        impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere).

    Returns:
        `path [B, N]` int64, the accepted nodes from the root on, -1 padded; `lengths [B]` int64, accepted nodes below
        the root; `next_tokens [B]` int64, the target's token after the last accepted node. A row emits `lengths + 1`
        tokens. All three are -1 for a row of padding.

    Raises:
        TypeError: if a tensor is not int64.
        ValueError: if a shape, a device or `impl` does not fit.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise ValueError(f"tokens: expected shape [B, N >= 1], got {list(tokens.shape)}")
    batch, nodes = tokens.shape
    for name, value in (("parents", parents), ("depth", depth), ("picked", picked)):
        check_shape(name, value, (batch, nodes))
    check_shape("ancestors", ancestors, (batch, nodes, -(-nodes // WORD)))
    check_shape("sizes", sizes, (batch,))
    inputs = (tokens, parents, depth, ancestors, sizes, picked)
    check_integers(
        tokens=tokens, parents=parents, depth=depth, ancestors=ancestors, sizes=sizes, picked=picked
    )
    if chooses_kernel(impl, *inputs):
        if nodes > MAX_NODES:
            raise ValueError(f"tokens: expected at most {MAX_NODES} nodes in a kernel, got {nodes}")
        return _accept_tree(*inputs)  # type: ignore[no-any-return]
    return accept_tree_reference(*inputs)


def _launch(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from .kernel import launch_accept_tree

    return launch_accept_tree(*inputs)


def _fake(tokens: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, nodes = tokens.shape
    return (
        tokens.new_empty((batch, nodes)),
        tokens.new_empty(batch),
        tokens.new_empty(batch),
    )


_accept_tree = register(
    "accept_tree(Tensor tokens, Tensor parents, Tensor depth, Tensor ancestors, Tensor sizes, Tensor picked)"
    " -> (Tensor path, Tensor lengths, Tensor next_tokens)",
    _launch,
    _fake,
)
