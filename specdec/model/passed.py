"""What goes into a pass of the target beside a tree, and what comes out of it."""

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
    """A reader of hidden states in the middle of the model, while prompts are read."""

    layers: int
    """Layers that have run before it reads."""
    read: Callable[[Tensor, TreeCache], None]
    """Takes hidden states `[B, N, E]` and the cache, whose pass is open."""


class Listener(NamedTuple):
    """A drafter's wish for hidden states of several layers, and for room behind the text."""

    layers: tuple[int, ...]
    """Layers, ascending from 1 on, whose inputs `[B, N, E]` it gets of every pass: of a tree by `Verified.inputs`."""
    read: Callable[[Mapping[int, Tensor], Tensor, TreeCache], None]
    """Called while prompts are read: takes these inputs by layer, the tokens `[B, N]` that follow and the cache, whose pass
    is open. What follows a prompt's last token is not known yet, and is any valid id."""
    nodes: int = 0
    """Most nodes of its own that it keeps behind the text, with `drafter_kv`, while it drafts."""


class Shallow(NamedTuple):
    """What a drafter that runs the target's own first layers leaves to verify: the others."""

    layers: int
    """Layers that have run; their keys and values lie behind the prefix."""
    hidden: Tensor
    """`[B, >= N, E]`, their output at the nodes of a chain."""


class SideNodes(NamedTuple):
    """Tokens run beside a tree for what the target says after them; they never enter the cache.

    Each sees the prefix, the root and earlier side nodes. No node of the tree sees them.
    """

    tokens: Tensor
    """`[B, S]` int64."""
    depth: Tensor
    """`[B, S]` int64; a side node sits at position `prefix + depth`."""
    sees: Tensor
    """`[S, S]` bool, lower triangular: which side nodes each one sees, itself included; alike in all rows."""
    wanted: int
    """So many of the last ones get logits."""


class Verified(NamedTuple):
    """What one pass of the target says."""

    logits: Tensor
    """`[B, N, V]`, or `[B, V]` after prefill."""
    hidden: Tensor
    """`[B, N, E]`, or `[B, E]`: the input of the head, after the final norm."""
    side_logits: Tensor | None = None
    """`[B, wanted, V]`, after the last side nodes, where there were any."""
    inputs: Mapping[int, Tensor] = MappingProxyType({})
    """By layer, of those that a drafter listens to, the hidden states that enter it: in the library's words `hidden_states[layer]`.
    `[B, N, E]`, or `[B, E]` after prefill."""

    def select(self, rows: Tensor) -> Verified:
        """Return these rows of a prefill, `[any]` int64, in this order, some perhaps more than once."""
        inputs = {layer: hidden[rows] for layer, hidden in self.inputs.items()}
        return Verified(self.logits[rows], self.hidden[rows], inputs=inputs)


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
