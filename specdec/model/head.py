"""The target's own head for drafters: all of it, or the rows of a draft vocabulary."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from specdec_kernels import LMHeadTopK
from specdec_kernels.dispatch import Impl

from .cpu_linear import PrepackedLinear
from .model_state import check_plain
from .parts import DecoderParts


def draft_head(parts: DecoderParts, vocabulary: Tensor | None, impl: Impl) -> LMHeadTopK:
    """Make a head for drafters out of the rows of the target's own.

    Args:
        parts: the target's.
        vocabulary: `[Vd]` int64, ascending, the rows wanted; None for the whole head, which is then shared.
        impl: what computes.

    Returns:
        The head; its ids are the target's.

    Raises:
        ValueError: if the target's own is no plain linear layer with plain weights.
    """
    linear: Any = parts.head
    check_plain("head", linear, type(linear) in (nn.Linear, PrepackedLinear))
    if vocabulary is not None:
        vocabulary = vocabulary.to(linear.weight.device)
        rows = nn.Linear(linear.in_features, len(vocabulary), linear.bias is not None)
        rows.weight = nn.Parameter(linear.weight.detach()[vocabulary], requires_grad=False)
        if linear.bias is not None:
            rows.bias = nn.Parameter(linear.bias.detach()[vocabulary], requires_grad=False)
        linear = rows
    scaling = parts.scaling
    return LMHeadTopK(
        linear,
        logit_scale=scaling.logit_factor,
        softcap=scaling.softcap,
        id_map=vocabulary,
        impl=impl,
    )
