"""`HeadWeights`: the weights of a language-model head, and how it finishes its products."""

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
    """`[V]` int64, the target's id of each row of the weight. Among equal logits the first row comes first."""
    logit_scale: float | None = None
    """Factor of the logits (Cohere; 1 / Granite's divisor)."""
    softcap: float | None = None
    """Logits become `softcap * tanh(logits / softcap)` (Gemma 2)."""
    round_to: torch.dtype | None = None
    """Dtype to which the model rounds its logits; None for float32."""


def as_head(head: HeadWeights | Tensor, options: dict[str, Any]) -> HeadWeights:
    """Return a head; a tensor becomes the weight of one without other fields.

    Args:
        head: the head, or a weight `[V, E]`.
        options: deprecated: other fields of the head as separate arguments.

    Raises:
        TypeError: if an option is not a field, or `HeadWeights` are given together with options.
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
