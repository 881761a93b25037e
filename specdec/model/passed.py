"""Inputs of a target's pass besides the tree, and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec_kernels import pack_bits

from ..tree import TokenTree
from .cache import TreeCache


class Tap(NamedTuple):
    """A callback that reads hidden states between two layers during prefill."""

    layers: int
    """Number of layers that run before it."""
    read: Callable[[Tensor, TreeCache], None]
    """Called with hidden states `[B, N, E]` and the cache, whose pass is open."""


class Listener(NamedTuple):
    """A drafter's request for hidden states of several layers, and for cache slots after the text."""

    layers: tuple[int, ...]
    """Layers, ascending and at least 1, whose inputs `[B, N, E]` it receives; those of a tree as `Verified.inputs`."""
    read: Callable[[Mapping[int, Tensor], Tensor, TreeCache], None]
    """Called during prefill with these inputs by layer, the next tokens `[B, N]`, and the cache, whose pass is open. The
    token after a prompt's last one is not known yet: any valid id stands there."""
    nodes: int = 0
    """Most nodes of its own in `drafter_kv` after the text while it drafts."""


class Shallow(NamedTuple):
    """The work already done by a drafter that runs the target's first layers; `verify` runs the others."""

    layers: int
    """Number of layers that have run; their keys and values lie after the prefix."""
    hidden: Tensor
    """`[B, >= N, E]`, their output at the nodes of a chain."""


class SideNodes(NamedTuple):
    """Nodes that run in the same pass as a tree for the target's logits after them; they never enter the cache.

    A side node sees the prefix, the root and the side nodes given by `sees`. No node of the tree sees side nodes.
    """

    tokens: Tensor
    """`[B, S]` int64."""
    depth: Tensor
    """`[B, S]` int64; a side node sits at position `prefix + depth`."""
    sees: Tensor
    """`[S, S]` bool, lower triangular: the side nodes that each one sees, itself included; equal in all rows."""
    wanted: int
    """Number of last side nodes that get logits."""


class Verified(NamedTuple):
    """The outputs of one pass of the target."""

    logits: Tensor
    """`[B, N, V]`, or `[B, V]` after prefill."""
    hidden: Tensor
    """`[B, N, E]`, or `[B, E]` after prefill: the input of the head, after the final norm."""
    side_logits: Tensor | None = None
    """`[B, wanted, V]`, after the last side nodes; None without side nodes."""
    inputs: Mapping[int, Tensor] = MappingProxyType({})
    """The inputs of the layers that a drafter listens to, by layer (transformers' `hidden_states[layer]`): `[B, N, E]`, or
    `[B, E]` after prefill."""

    def select(self, rows: Tensor) -> Verified:
        """Return rows of a prefill by index, `[any]` int64; rows may repeat."""
        inputs = {layer: hidden[rows] for layer, hidden in self.inputs.items()}
        return Verified(self.logits[rows], self.hidden[rows], inputs=inputs)


class PassNodes(NamedTuple):
    """All nodes of a pass: the tree's, then the side nodes."""

    tokens: Tensor
    """`[B, N + S]` int64."""
    depth: Tensor
    """`[B, N + S]` int64."""
    ancestors: Tensor
    """`[B, N + S, ceil((N + S) / 64)]` int64 bit sets."""


def pass_nodes(tree: TokenTree, side: SideNodes | None) -> PassNodes:
    """Append side nodes to a tree of N nodes."""
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
