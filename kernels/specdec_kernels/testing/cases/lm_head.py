"""Cases of `lm_head_topk`: heads of real models, for rows of a beam search, of a batch and of one text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...lm_head import HeadWeights, lm_head_topk
from ..case import ARCHS, Case, Inputs


def _prepare(
    rows: int,
    width: int,
    vocabulary: int,
    k: int,
    dtype: torch.dtype,
    softcap: float | None = None,
) -> Callable[[Inputs], Callable[[], Any]]:
    def prepare(inputs: Inputs) -> Callable[[], Any]:
        hidden = inputs.floats(rows, width, dtype=dtype)
        weight = inputs.floats(vocabulary, width, dtype=dtype)
        head = HeadWeights(weight, softcap=softcap, round_to=dtype)
        return lambda: lm_head_topk(hidden, head, k, impl="triton")

    return prepare


CASES = [
    Case("llama3-8b-R16-k10-bfloat16", _prepare(16, 4096, 128256, 10, torch.bfloat16), ARCHS),
    Case("llama3-8b-R1-k1-bfloat16", _prepare(1, 4096, 128256, 1, torch.bfloat16)),
    Case("llama3-8b-R80-k10-bfloat16", _prepare(80, 4096, 128256, 10, torch.bfloat16)),
    Case("llama3-8b-R16-k64-bfloat16", _prepare(16, 4096, 128256, 64, torch.bfloat16)),
    Case("gemma2-2b-R40-k10-bfloat16", _prepare(40, 2304, 256000, 10, torch.bfloat16, 30.0)),
    Case("vicuna-7b-R20-k10-float16", _prepare(20, 4096, 32000, 10, torch.float16)),
    Case("smollm2-R4-k1-float32", _prepare(4, 576, 49152, 1, torch.float32), ("sm_80",)),
    Case("smollm2-R20-k4-float32", _prepare(20, 576, 49152, 4, torch.float32)),
    Case("smollm2-R64-k4-float32", _prepare(64, 576, 49152, 4, torch.float32)),
    Case("smollm2-R16-k4-bfloat16", _prepare(16, 576, 49152, 4, torch.bfloat16)),
]

SMALL = [Case("R3-k4-float32", _prepare(3, 32, 150, 4, torch.float32))]

COUNTED = [
    Case("llama3-8b-R16-k10-V2048-float16", _prepare(16, 4096, 2048, 10, torch.float16)),
    Case("llama3-8b-R80-k10-V512-float16", _prepare(80, 4096, 512, 10, torch.float16)),
    Case("smollm2-R4-k1-V8192-float16", _prepare(4, 576, 8192, 1, torch.float16)),
    Case("smollm2-R20-k4-V4096-float32", _prepare(20, 576, 4096, 4, torch.float32)),
]
"""Cases whose bytes are counted: widths of real models, small enough for an interpreter."""
