"""Compiling before the first decode what decodes will launch: a late compilation makes a text wait for seconds.

A kernel is compiled anew only where its tiles or the kinds of its arguments differ; lengths, rows, nodes and beams do not
count by themselves. So there are few ways for a decode to launch each.
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

    What was compiled before, also by another process, comes from Triton's cache.

    Args:
        shape: the decode's.
        device: a CUDA device.
        progress: called before each launch with how many are done, how many there are and the op's name, and once
            after the last.

    Returns:
        The number of launches.

    Raises:
        ValueError: if kernels do not run on the device, or a size is more than one takes.
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
