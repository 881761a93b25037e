"""Cases of `beam_step`, and of `lm_head_beams`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...beam_step import beam_step, lm_head_beams
from ...lm_head import HeadWeights
from ..case import ARCHS, Case, Inputs


def _prepare(
    batch: int, beams: int, count: int, width: int
) -> Callable[[Inputs], Callable[[], Any]]:
    def prepare(inputs: Inputs) -> Callable[[], Any]:
        scores = inputs.floats(batch, beams, dtype=torch.float32)
        log_probs = inputs.floats(batch, beams, count, dtype=torch.float32)
        ids = torch.arange(batch * beams * count, device=inputs.device).view_as(log_probs)
        return lambda: beam_step(scores, log_probs, ids, width, impl="triton")

    return prepare


def _prepare_head(
    batch: int, beams: int, size: int, vocabulary: int, dtype: torch.dtype
) -> Callable[[Inputs], Callable[[], Any]]:
    def prepare(inputs: Inputs) -> Callable[[], Any]:
        hidden = inputs.floats(batch, beams, size, dtype=dtype)
        weight = inputs.floats(vocabulary, size, dtype=dtype)
        scores = inputs.floats(batch, beams, dtype=torch.float32)
        return lambda: lm_head_beams(
            hidden, HeadWeights(weight, round_to=dtype), scores, beams, impl="triton"
        )

    return prepare


CASES = [
    Case(
        "llama3-8b-head-B2-W10-bfloat16",
        _prepare_head(2, 10, 4096, 128256, torch.bfloat16),
        ("sm_90",),
    ),
    Case("gemma2-2b-head-B1-W64-bfloat16", _prepare_head(1, 64, 2304, 256000, torch.bfloat16)),
    Case("vicuna-7b-head-B8-W5-float16", _prepare_head(8, 5, 4096, 32000, torch.float16)),
    Case("B8-W10-K10", _prepare(8, 10, 10, 10), ARCHS),
    Case("B1-W64-K64", _prepare(1, 64, 64, 64)),
    Case("B8-W1-K4", _prepare(8, 1, 4, 4)),
    Case("smollm2-head-B1-W4-float32", _prepare_head(1, 4, 576, 49152, torch.float32)),
]

SMALL = [
    Case("B2-W3-K4", _prepare(2, 3, 4, 3)),
    Case("head-B1-W3-float32", _prepare_head(1, 3, 16, 150, torch.float32)),
]

COUNTED = [
    Case("B8-W10-K10", _prepare(8, 10, 10, 10)),
    Case("llama3-8b-head-B2-W10-V2048-float16", _prepare_head(2, 10, 4096, 2048, torch.float16)),
]
"""Cases whose bytes are counted: widths of real models, small enough for an interpreter."""
