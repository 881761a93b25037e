"""Keeps sums of 16-bit matrix products in float32 on CUDA while a model runs; torch's default allows 16 bits.

When cuBLAS splits a product along its sums, it may add the parts in 16 bits. The split depends on the number of rows,
which differs between a tree and a plain step, so logits would differ by more than the order of summation. Settings that
are off by default in torch (TF32, sums in float16) are not changed.
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
    """Disable 16-bit reduction of split sums inside a `with` block, and restore torch's flags afterwards.

    The flags are global to the process, so threads wait for each other.

    Args:
        device: the model's device; no effect unless it is CUDA.
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
    """Read torch's flags: whether parts may be rounded, and (if the release has it) whether sums may be split."""
    matmul: Any = torch.backends.cuda.matmul
    return {
        flag: (getattr(matmul, flag), getattr(matmul, f"{flag}_split_k", True)) for flag in FLAGS
    }


def _set(flags: dict[str, tuple[bool, bool]]) -> None:
    for flag, (rounded, cuts) in flags.items():
        # Releases with one flag take a bool instead of a pair.
        setattr(torch.backends.cuda.matmul, flag, rounded if cuts else (rounded, cuts))
