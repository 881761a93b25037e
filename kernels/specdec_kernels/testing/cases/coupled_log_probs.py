"""Cases of `coupled_log_probs`: candidates of a beam search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...coupled_log_probs import coupled_log_probs
from ..case import ARCHS, Case, Inputs


def _prepare(batch: int, beams: int, count: int) -> Callable[[Inputs], Callable[[], Any]]:
    def prepare(inputs: Inputs) -> Callable[[], Any]:
        log_probs = inputs.floats(batch, beams, count, dtype=torch.float32)
        ids = torch.arange(batch * beams * count, device=inputs.device).view_as(log_probs)
        streams = torch.arange(batch, device=inputs.device)
        return lambda: coupled_log_probs(
            log_probs,
            ids,
            seed=1,
            streams=streams,
            positions=streams + 100,
            temperature=0.7,
            sharpness=1.5,
            impl="triton",
        )

    return prepare


CASES = [
    Case("B8-W8-k32", _prepare(8, 8, 32), ARCHS),
    Case("B1-W1-k32", _prepare(1, 1, 32)),
    Case("B1-W64-k1024", _prepare(1, 64, 1024)),
]

SMALL = [Case("B2-W3-k5", _prepare(2, 3, 5))]

COUNTED = [Case("B8-W8-k32", _prepare(8, 8, 32))]
