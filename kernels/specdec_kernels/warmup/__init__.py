"""Warm-up: compiles all kernels of a decode before the first text, as a late compilation delays a text by seconds.

A kernel is compiled again only if its tiles or the kinds of its arguments differ, not for every length or number of rows,
nodes and beams. A decode therefore launches each kernel in few variants.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .launches import reachable
from .shape import BeamDraftShape, DecodeShape, Draws, ExitDraftShape, Heads, HeadShape

__all__ = [
    "BeamDraftShape",
    "DecodeShape",
    "Draws",
    "ExitDraftShape",
    "HeadShape",
    "Heads",
    "warmup",
]


def warmup(
    shape: DecodeShape,
    device: torch.device | str,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> int:
    """Compile every kernel that a decode can launch, by launching each once on zeros.

    Kernels compiled before, also by another process, come from Triton's cache.

    Args:
        shape: the decode's sizes and settings.
        device: a CUDA device.
        progress: called before each launch with the number done, the total and the op's name, and once at the end.

    Returns:
        The number of launches.

    Raises:
        ValueError: if kernels do not run on the device, or a size exceeds a kernel's limit.
    """
    device = torch.device(device)
    if device.type != "cuda":
        raise ValueError(f"device: expected a CUDA device, got {device}")
    launches = list(reachable(shape, device))
    with torch.no_grad():
        for done, (op, launch) in enumerate(launches):
            if progress is not None:
                progress(done, len(launches), op)
            launch()
    if progress is not None:
        progress(len(launches), len(launches), "")
    return len(launches)
