"""How a head travels: its weights, and what it does to its products."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor


class HeadWeights(NamedTuple):
    """A language-model head, or some of its rows."""

    weight: Tensor
    """`[V, E]`."""
    bias: Tensor | None = None
    """`[V]`."""
    id_map: Tensor | None = None
    """`[V]` int64, the target's id of each row. Among equals the first row comes first."""
    logit_scale: float | None = None
    """Factor on the logits (Cohere; 1 / Granite's divisor)."""
    softcap: float | None = None
    """Logits become `softcap * tanh(logits / softcap)` (Gemma 2)."""
    round_to: torch.dtype | None = None
    """Dtype that the model rounds its logits to; None for float32 throughout."""


def as_head(head: HeadWeights | Tensor, options: dict[str, Any]) -> HeadWeights:
    """Return a head; a tensor is the weight of one without options.

    Args:
        head: the head, or `[V, E]`.
        options: fields of a head beside its weight, given apart; deprecated.

    Raises:
        TypeError: if an option is no field, or a whole head comes with options.
    """
    if isinstance(head, HeadWeights):
        if options:
            raise TypeError(f"head: expected all in HeadWeights, got {', '.join(options)} apart")
        return head
    if options:
        if unknown := options.keys() - HeadWeights._fields[1:]:
            raise TypeError(
                f"head: expected fields of HeadWeights, got {', '.join(sorted(unknown))}"
            )
        warnings.warn(
            f"head: expected HeadWeights(weight, ...), got {', '.join(options)} apart, which goes with the next release",
            DeprecationWarning,
            stacklevel=3,
        )
    return HeadWeights(head, **options)
