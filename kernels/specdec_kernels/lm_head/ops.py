"""The public functions and the op behind them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import (
    FLOATS,
    check_integers,
    check_kernel_float,
    check_last_stride,
    check_shape,
)
from ..dispatch import Impl, chooses_kernel, register
from .reference import SureToken, TopTokens, lm_head_topk_reference, sure_token

MAX_TOKENS = 64


def lm_head_topk(
    hidden: Tensor,
    weight: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    logit_scale: float | None = None,
    softcap: float | None = None,
    round_to: torch.dtype | None = None,
    id_map: Tensor | None = None,
    impl: Impl = "auto",
) -> TopTokens:
    """Take the k most likely tokens of each row, with log-probabilities.

    NaN ranks above all numbers; where a row has one, or +inf, its log-probabilities are NaN. Of a row of nothing but -inf
    they are -inf, and so is the logsumexp: no token has a probability.

    Args:
        hidden: `[R, E]`.
        weight: `[V, E]`, the rows of the head; a draft vocabulary has some of the target's.
        k: 1 to 64, and at most V.
        bias: `[V]`.
        logit_scale: factor on the logits (Cohere; 1 / Granite's divisor).
        softcap: logits become `softcap * tanh(logits / softcap)` (Gemma 2).
        round_to: dtype that the model rounds its logits to; None for float32 throughout.
        id_map: `[V]` int64, the target's id of each row of the head. Among equals the first row comes first.
        impl: "triton", "reference", or "auto" for what suits the device.

    Returns:
        Ids, log-probabilities, logsumexp.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, a stride, `k`, a device or `impl` does not fit.
    """
    if check_topk(hidden, weight, k, bias, round_to, id_map, impl):
        return run_topk(hidden, weight, k, bias, logit_scale, softcap, round_to, id_map)
    return lm_head_topk_reference(
        hidden,
        weight,
        k,
        bias=bias,
        logit_scale=logit_scale,
        softcap=softcap,
        round_to=round_to,
        id_map=id_map,
    )


def lm_head_confidence(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float | None = None,
    softcap: float | None = None,
    round_to: torch.dtype | None = None,
    id_map: Tensor | None = None,
    impl: Impl = "auto",
) -> SureToken:
    """Take the most likely token of each row and its probability (Kangaroo section 3.2).

    Arguments, and errors, as in `lm_head_topk`.
    """
    top = lm_head_topk(
        hidden,
        weight,
        1,
        bias=bias,
        logit_scale=logit_scale,
        softcap=softcap,
        round_to=round_to,
        id_map=id_map,
        impl=impl,
    )
    return sure_token(top)


def check_topk(
    hidden: Tensor,
    weight: Tensor,
    k: int,
    bias: Tensor | None,
    round_to: torch.dtype | None,
    id_map: Tensor | None,
    impl: Impl,
) -> bool:
    """Check the arguments of `lm_head_topk`, and decide between kernel and reference; errors as there."""
    kernel = check_head(hidden, weight, bias, round_to, id_map, impl)
    most = min(MAX_TOKENS, len(weight))
    if not 1 <= k <= most:
        raise ValueError(f"k: expected 1 to {most} (64 and V at most), got {k}")
    return kernel


def run_topk(*arguments: Any) -> TopTokens:
    """Run the kernel on checked arguments, in the order of the op's schema."""
    return TopTokens(*_lm_head_topk(*arguments))


def check_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    round_to: torch.dtype | None,
    id_map: Tensor | None,
    impl: Impl,
    *others: Tensor,
) -> bool:
    """Check what all functions of a head share, and decide between kernel and reference.

    Args:
        hidden: `[R, E]`; it and the next five as in `lm_head_topk`.
        weight: `[V, E]`.
        bias: `[V]`, or None.
        round_to: dtype, or None.
        id_map: `[V]` int64, or None.
        impl: which implementation is asked for.
        others: further inputs, which must lie on the same device.

    Returns:
        Whether the kernel runs.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, a stride, a device or `impl` does not fit.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "hidden, weight: expected shapes [R, E] and [V, E], "
            f"got {list(hidden.shape)} and {list(weight.shape)}"
        )
    if not len(weight):
        raise ValueError(f"weight: expected shape [V >= 1, E], got {list(weight.shape)}")
    for name, value in (("bias", bias), ("id_map", id_map)):
        if value is not None:
            check_shape(name, value, weight.shape[:1])
    check_integers(id_map=id_map)
    kernel = chooses_kernel(impl, hidden, weight, bias, id_map, *others)
    if kernel:
        check_kernel_float(hidden=hidden, weight=weight, bias=bias)
        check_last_stride(hidden=hidden, weight=weight)
        check_rounding("round_to", round_to)
    return kernel


def check_rounding(name: str, dtype: torch.dtype | None) -> None:
    """Raise TypeError unless kernels can round logits to `dtype`; None for no rounding."""
    if dtype is not None and dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16 in a kernel, got {dtype}")


def _launch(
    hidden: Tensor,
    weight: Tensor,
    k: int,
    bias: Tensor | None,
    logit_scale: float | None,
    softcap: float | None,
    round_to: torch.dtype | None,
    id_map: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from .kernel import launch_head_tiles
    from .merge import launch_merge_rows

    lists = launch_head_tiles(
        hidden,
        weight,
        k,
        bias=bias,
        logit_scale=logit_scale,
        softcap=softcap,
        round_to=round_to,
    )
    return launch_merge_rows(*lists, id_map)


def _fake(
    hidden: Tensor, weight: Tensor, k: int, *options: object
) -> tuple[Tensor, Tensor, Tensor]:
    rows = hidden.shape[0]
    return (
        hidden.new_empty((rows, k), dtype=torch.int64),
        hidden.new_empty((rows, k), dtype=torch.float32),
        hidden.new_empty(rows, dtype=torch.float32),
    )


_lm_head_topk = register(
    "lm_head_topk(Tensor hidden, Tensor weight, int k, Tensor? bias, float? logit_scale, float? softcap,"
    " ScalarType? round_to, Tensor? id_map) -> (Tensor ids, Tensor log_probs, Tensor logsumexp)",
    _launch,
    _fake,
)
