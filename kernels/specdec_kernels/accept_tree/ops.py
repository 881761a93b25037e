"""The public function: checks its arguments, then runs the reference."""

from __future__ import annotations

from torch import Tensor

from .reference import accept_tree_reference


def accept_tree(
    tokens: Tensor,
    parents: Tensor,
    depth: Tensor,
    ancestors: Tensor,
    sizes: Tensor,
    picked: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the longest path that the target agrees with.

    Args:
        tokens: `[B, N]` int64, a deduplicated tree as `pack_tree` makes it.
        parents: `[B, N]` int64.
        depth: `[B, N]` int64.
        ancestors: `[B, N, ceil(N / 64)]` int64 bit sets, self included.
        sizes: `[B]` int64, nodes at or beyond a row's size are never accepted.
        picked: `[B, N]` int64, the target's own next token after each node.

    Returns:
        `path [B, N]` int64, the accepted nodes from the root on, -1 padded; `lengths [B]` int64, accepted nodes below
        the root; `next_tokens [B]` int64, the target's token after the last accepted node.

    Raises:
        ValueError: if a shape does not fit.
    """
    for name, value in (("parents", parents), ("depth", depth), ("picked", picked)):
        if value.shape != tokens.shape:
            raise ValueError(
                f"{name}: expected shape {list(tokens.shape)}, got {list(value.shape)}"
            )
    return accept_tree_reference(tokens, parents, depth, ancestors, sizes, picked)
