"""What goes into a pass of the target beside a tree, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .cache import TreeCache


class Tap(NamedTuple):
    """A reader of hidden states in the middle of the model, while prompts are read."""

    layers: int
    """Layers that have run before it reads."""
    read: Callable[[Tensor, TreeCache], None]
    """Takes hidden states `[B, N, E]` and the cache, whose pass is open."""


class Shallow(NamedTuple):
    """What a drafter that runs the target's own first layers leaves to verify: the others."""

    layers: int
    """Layers that have run; their keys and values lie behind the prefix."""
    hidden: Tensor
    """`[B, >= N, E]`, their output at the nodes of a chain."""


class Verified(NamedTuple):
    """What one pass of the target says."""

    logits: Tensor
    """`[B, N, V]`, or `[B, V]` after prefill."""
    hidden: Tensor
    """`[B, N, E]`, or `[B, E]`: the input of the head, after the final norm."""

    def repeat(self, copies: int) -> Verified:
        """Return `copies` rows for each row, one after another."""
        return Verified(*(x.repeat_interleave(copies, 0) for x in self))
