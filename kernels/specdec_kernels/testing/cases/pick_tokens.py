"""Cases of `pick_tokens`: vocabularies of real models, with and without filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...pick_tokens import pick_tokens
from ..case import ARCHS, Case, Inputs


def _prepare(
    rows: int,
    vocabulary: int,
    dtype: torch.dtype,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Callable[[Inputs], Callable[[], Any]]:
    def prepare(inputs: Inputs) -> Callable[[], Any]:
        logits = inputs.floats(rows, vocabulary, dtype=dtype)
        streams = torch.arange(rows, device=inputs.device)
        return lambda: pick_tokens(
            logits,
            seed=1,
            streams=streams,
            positions=streams + 100,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            impl="triton",
        )

    return prepare


CASES = [
    Case(
        "llama3-8b-R8-k50-p0.9-float32",
        _prepare(8, 128256, torch.float32, 0.8, 50, 0.9),
        ARCHS,
    ),
    Case("llama3-8b-R1-float32", _prepare(1, 128256, torch.float32)),
    Case("llama3-8b-R32-bfloat16", _prepare(32, 128256, torch.bfloat16, 0.7)),
    Case("gemma2-2b-R1-p0.95-bfloat16", _prepare(1, 256000, torch.bfloat16, top_p=0.95)),
    Case("vicuna-7b-R4-k40-float16", _prepare(4, 32000, torch.float16, top_k=40)),
    Case("smollm2-R1-p0.9-float32", _prepare(1, 49152, torch.float32, 0.8, top_p=0.9)),
]

SMALL = [
    Case("R3-float32", _prepare(3, 150, torch.float32, 0.8)),
    Case("R2-k9-p0.9-float32", _prepare(2, 150, torch.float32, 0.8, 9, 0.9)),
]

COUNTED = [
    Case("smollm2-R2-float32", _prepare(2, 49152, torch.float32, 0.8)),
    Case("R1-V4096-k50-p0.9-float32", _prepare(1, 4096, torch.float32, 0.8, 50, 0.9)),
]
"""Cases whose bytes are counted: small enough for an interpreter."""
