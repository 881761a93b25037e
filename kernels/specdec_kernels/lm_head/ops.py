"""The public functions `lm_head_topk` and `lm_head_confidence`, and their registered op."""

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
from .weights import HeadWeights, as_head

MAX_TOKENS = 64


def lm_head_topk(
    hidden: Tensor,
    head: HeadWeights | Tensor,
    k: int,
    *,
    impl: Impl = "auto",
    **options: Any,
) -> TopTokens:
    """Return the k most likely tokens of each row, with log-probabilities.

    NaN ranks above all numbers; in a row with NaN or +inf all log-probabilities are NaN. In a row with only -inf they and
    the logsumexp are -inf.

    Args:
        hidden: `[R, E]`, hidden states.
        head: the head, or the weight `[V, E]` of a head without other fields.
        k: 1 to 64, and at most V.
        impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere).
        options: deprecated: other fields of the head.

    Returns:
        Ids, log-probabilities and logsumexp, as `TopTokens`.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, a stride, `k`, a device or `impl` does not fit.
    """
    head = as_head(head, options)
    if check_topk(hidden, head, k, impl):
        return run_topk(hidden, head, k)
    return lm_head_topk_reference(hidden, head, k)


def lm_head_confidence(
    hidden: Tensor, head: HeadWeights | Tensor, *, impl: Impl = "auto", **options: Any
) -> SureToken:
    """Return the most likely token of each row and its probability (Kangaroo section 3.2).

    Arguments and errors as in `lm_head_topk`.
    """
    return sure_token(lm_head_topk(hidden, as_head(head, options), 1, impl=impl))


def check_topk(hidden: Tensor, head: HeadWeights, k: int, impl: Impl) -> bool:
    """Check the arguments of `lm_head_topk`; return whether the kernel runs. Errors as there."""
    kernel = check_head(hidden, head, impl)
    most = min(MAX_TOKENS, len(head.weight))
    if not 1 <= k <= most:
        raise ValueError(f"k: expected 1 to {most} (64 and V at most), got {k}")
    return kernel


def run_topk(hidden: Tensor, head: HeadWeights, k: int) -> TopTokens:
    """Run the kernel on checked arguments."""
    return TopTokens(*_lm_head_topk(hidden, head.weight, k, *options_of(head)))


def check_head(hidden: Tensor, head: HeadWeights, impl: Impl, *others: Tensor) -> bool:
    """Check the arguments that all functions of a head share, and choose between kernel and reference.

    Args:
        hidden: `[R, E]`.
        head: as in `lm_head_topk`.
        impl: the requested implementation.
        others: further inputs, which must be on the same device.

    Returns:
        Whether the kernel runs.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, a stride, a device or `impl` does not fit.
    """
    weight, bias, id_map = head[:3]
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
        check_rounding("round_to", head.round_to)
    return kernel


def options_of(head: HeadWeights) -> tuple[Any, ...]:
    """Return a head's fields except its weight, in the order of the ops' schemas."""
    return head.bias, head.logit_scale, head.softcap, head.round_to, head.id_map


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

    head = HeadWeights(weight, bias, id_map, logit_scale, softcap, round_to)
    return launch_merge_rows(*launch_head_tiles(hidden, head, k), id_map)


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
