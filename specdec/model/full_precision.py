"""Sums of 16-bit products stay in float32 while a model runs; left to itself, torch lets cuBLAS round them on the way.

Where cuBLAS cuts a product along its sums, it may add the parts up in 16 bits. How it cuts depends on the number of rows, and a
pass over a tree has others than a plain step: their logits would differ by more than the order of sums. What a user must
ask torch for, TF32 and sums in float16, is left as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_alone = threading.RLock()
FLAGS = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")


@contextmanager
def full_precision_sums(device: torch.device) -> Iterator[None]:
    """Switch rounding between the parts of sums off within; afterwards torch's flags are as they were.

    The flags belong to the process, so threads wait for each other.

    Args:
        device: where the model runs; only on CUDA there is something to switch.
    """
    if device.type != "cuda":
        yield
        return
    with _alone:
        before = _flags()
        _set({flag: (False, cuts) for flag, (_, cuts) in before.items()})
        try:
            yield
        finally:
            _set(before)


def _flags() -> dict[str, tuple[bool, bool]]:
    """Read whether parts may be rounded, and whether there may be parts at all, where torch knows of that."""
    matmul: Any = torch.backends.cuda.matmul
    return {
        flag: (getattr(matmul, flag), getattr(matmul, f"{flag}_split_k", True)) for flag in FLAGS
    }


def _set(flags: dict[str, tuple[bool, bool]]) -> None:
    for flag, (rounded, cuts) in flags.items():
        # Releases that know of one switch alone take no pair.
        setattr(torch.backends.cuda.matmul, flag, rounded if cuts else (rounded, cuts))
