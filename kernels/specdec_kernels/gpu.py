"""GPU properties from which launchers choose tiles and splits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import torch


class Gpu(NamedTuple):
    """One kind of GPU."""

    arch: str
    """`sm_90`, `gfx942`, …; `interpreter` if kernels run on the CPU."""
    processors: int
    """Streaming multiprocessors, or compute units."""
    shared_bytes: int
    """Bytes of shared memory available to one program."""


# Compute units and limits of the GPUs for which kernels are compiled ahead of time, and of related ones.
KNOWN = {
    "sm_80": Gpu("sm_80", 108, 163 * 1024),
    "sm_90": Gpu("sm_90", 132, 227 * 1024),
    "sm_100": Gpu("sm_100", 148, 227 * 1024),
    "sm_103": Gpu("sm_103", 148, 227 * 1024),
    "gfx942": Gpu("gfx942", 304, 64 * 1024),
}
# Few processors, so that small inputs are split as large ones on a GPU.
INTERPRETER = Gpu("interpreter", 8, 64 * 1024)

_pretended: ContextVar[Gpu | None] = ContextVar("pretended", default=None)


def gpu_of(device: torch.device) -> Gpu:
    """Return the properties of the GPU that computes tensors on `device`."""
    if (pretended_gpu := _pretended.get()) is not None:
        return pretended_gpu
    return INTERPRETER if device.type == "cpu" else _cuda(device)


@cache
def _cuda(device: torch.device) -> Gpu:
    from triton.compiler.compiler import max_shared_mem

    index = torch.cuda.current_device() if device.index is None else device.index
    facts = torch.cuda.get_device_properties(index)
    arch = (
        facts.gcnArchName.partition(":")[0]
        if torch.version.hip
        else f"sm_{facts.major}{facts.minor}"
    )
    # Triton also asks the driver for these before it launches.
    return Gpu(arch, facts.multi_processor_count, max_shared_mem(index))


def pretended() -> bool:
    """Return whether launches are for a simulated GPU."""
    return _pretended.get() is not None


@contextmanager
def pretend(gpu: Gpu) -> Iterator[None]:
    """Make launchers choose tiles and splits for `gpu`, for compiling ahead of time."""
    token = _pretended.set(gpu)
    try:
        yield
    finally:
        _pretended.reset(token)
