"""The public function `pick_tokens` and its registered op."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import check_integers, check_kernel_float, check_last_stride, check_shape
from ..dispatch import Impl, chooses_kernel, register
from .noise import check_seed
from .reference import pick_tokens_reference


def pick_tokens(
    logits: Tensor,
    *,
    seed: int,
    streams: Tensor,
    positions: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Sample one token per row, with noise that depends on seed, stream, position and token only.

    Temperature, top-k and top-p are applied in this order, as in transformers. The token is then picked by Gumbel-max
    (Maddison et al. 2014, "A* sampling"): the largest score plus noise, the lowest id among equals. A row in which all
    tokens are -inf gives 0, a row with NaN its first NaN.

    Args:
        logits: `[R, V]` float, or processed scores; tokens with -inf are never picked.
        seed: 0 to 2^64 - 1.
        streams: `[R]` int64, 0 to 2^32 - 1: the stream of each row's noise.
        positions: `[R]` int64, 0 to 2^32 - 1: position of the picked token, padding not counted.
        temperature: divisor of the logits, above 0.
        top_k: number of most likely tokens kept, and all tokens equal to the last of them; None for all.
        top_p: probability mass of the most likely tokens kept, 0 to 1, at least one token; None for all.
        impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere).

    Returns:
        Ids, `[R]` int64.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, a stride, an option, a device or `impl` does not fit.
    """
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits: expected shape [R, V >= 1], got {list(logits.shape)}")
    if not logits.is_floating_point():
        raise TypeError(f"logits: expected floating point, got {logits.dtype}")
    for name, value in (("streams", streams), ("positions", positions)):
        check_shape(name, value, logits.shape[:1])
    check_integers(streams=streams, positions=positions)
    check_seed(seed)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected above 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected at least 1, got {top_k}")
    if top_p is not None and not 0 <= top_p <= 1:
        raise ValueError(f"top_p: expected 0 to 1, got {top_p}")
    # A filter that keeps everything is skipped.
    top_k = None if top_k is not None and top_k >= logits.shape[1] else top_k
    top_p = None if top_p == 1 else top_p
    options = (streams, positions, temperature, top_k, top_p)
    if not chooses_kernel(impl, logits, streams, positions):
        return pick_tokens_reference(logits, seed, *options)
    check_kernel_float(logits=logits)
    check_last_stride(logits=logits)
    # Registered ops take signed integers.
    signed = seed - 2**64 if seed >= 2**63 else seed
    return _pick_tokens(logits, signed, *options)  # type: ignore[no-any-return]


def _launch(
    logits: Tensor,
    seed: int,
    streams: Tensor,
    positions: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Tensor:
    from .kernel import launch_pick_tokens

    return launch_pick_tokens(logits, seed, streams, positions, temperature, top_k, top_p)


def _fake(logits: Tensor, *others: object) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


_pick_tokens = register(
    "pick_tokens(Tensor logits, int seed, Tensor streams, Tensor positions, float temperature, int? top_k,"
    " float? top_p) -> Tensor",
    _launch,
    _fake,
)
