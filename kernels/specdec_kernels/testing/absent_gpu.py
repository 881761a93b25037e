"""Simulated GPUs: tensors that report a GPU as their device in Python but are computed on the CPU.

Code that branches on `x.device` takes the GPU's path: with CUDA, kernels run in Triton's interpreter; with MPS, references
run; and the host does not read tensors. Not simulated are the numerics, and how torch's C++ decomposes an op.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from ..dispatch import PLAIN
from ..gpu import Gpu, pretend

# With an index: without one, torch would ask the driver for the current device.
CUDA, MPS = torch.device("cuda", 0), torch.device("mps", 0)


class AbsentGpuTensor(Tensor):
    """A CPU tensor that reports a GPU as its device; ops on it need `absent_gpu`."""

    held: Tensor
    """The CPU tensor."""
    place: torch.device
    """The reported device."""

    @staticmethod
    def __new__(cls, inner: Tensor, place: torch.device) -> AbsentGpuTensor:
        """Wrap `inner` and share its memory."""
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
        )

    def __init__(self, inner: Tensor, place: torch.device) -> None:
        """Store the wrapped tensor and the device."""
        self.held, self.place = inner, place

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, *arguments: Any) -> Any:
        """Raise RuntimeError, as ops run only within `absent_gpu`."""
        raise RuntimeError(f"{function}: expected to run within absent_gpu, got no mode")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The simulated GPU."""
        return self.place

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """Whether the simulated GPU is NVIDIA's or AMD's."""
        return self.place.type == "cuda"

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({self.held!r}, {self.place})"

    def to(self, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        """Convert or copy as `Tensor.to`; C++ would treat a copy to the CPU as unnecessary."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            held: Tensor = torch.ops.aten._to_copy(
                self, dtype=dtype, device=device, non_blocking=non_blocking
            )
            return held
        dtype = dtype or self.dtype
        return self if dtype == self.dtype and not copy else super().to(dtype, copy=copy)

    def cpu(self, *args: Any) -> Tensor:
        """Copy to the host."""
        return self.to("cpu")

    def tolist(self) -> Any:
        """Copy to the host, as lists."""
        return self.to("cpu").tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """Raise TypeError, as for any tensor on a GPU."""
        raise TypeError(
            f"numpy: expected a tensor on the CPU, got one on {self.place}; copy it first"
        )


class AbsentEvent:
    """A GPU event that is always complete."""

    def record(self, stream: None = None) -> None:
        """Do nothing, as all work is complete."""

    def query(self) -> bool:
        """Return True."""
        return True


@contextmanager
def absent_gpu(place: torch.device, gpu: Gpu | None = None) -> Iterator[None]:
    """Simulate a device: within the block, tensors can be created on it, moved to it and computed on it.

    Args:
        place: `CUDA` or `MPS`.
        gpu: the GPU for which launchers choose tiles, as in `gpu.pretend`; None if there are no launchers.
    """
    future, lift = torch.__future__, torch._C._only_lift_cpu_tensors()
    overwrite = future.get_overwrite_module_params_on_conversion()
    # `torch.tensor(..., device=...)` creates a tensor on the CPU first, and copies it where modes see it.
    torch._C._set_only_lift_cpu_tensors(True)
    # Moving a module creates new parameters; C++ would otherwise put the wrapped tensors into the old ones.
    future.set_overwrite_module_params_on_conversion(True)
    PLAIN.add(AbsentGpuTensor)
    try:
        with (
            patch.object(torch.cuda, "_lazy_init", lambda: None),
            patch.object(torch.cuda, "Event", AbsentEvent),
            patch.object(torch.cuda, "current_stream", lambda device=None: None),
            nullcontext() if gpu is None else pretend(gpu),
            _Computing(place),
        ):
            yield
    finally:
        PLAIN.remove(AbsentGpuTensor)
        torch._C._set_only_lift_cpu_tensors(lift)
        future.set_overwrite_module_params_on_conversion(overwrite)


class _Computing(TorchDispatchMode):
    def __init__(self, place: torch.device) -> None:
        super().__init__()
        self.place = place

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an op of the simulated GPU on the CPU."""
        kwargs = kwargs or {}
        if is_composite(function):
            with self:
                return function.decompose(*args, **kwargs)
        device = kwargs.get("device")
        if device is None:
            there = any(isinstance(x, AbsentGpuTensor) for x in tree_leaves((args, kwargs)))
        else:
            there = device.type == self.place.type
            kwargs = {**kwargs, "device": torch.device("cpu")}
        inner_args, inner_kwargs = tree_map_only(AbsentGpuTensor, lambda x: x.held, (args, kwargs))
        out = function(*inner_args, **inner_kwargs)
        if not there:
            return out
        with torch.inference_mode(
            False
        ):  # a view of an ordinary tensor may not be an inference tensor
            out = tree_map_only(Tensor, lambda x: AbsentGpuTensor(x, self.place), out)
        return return_and_correct_aliasing(function, args, kwargs, out)


def is_composite(function: Any) -> bool:
    """Return whether an op is composed of others on every device; without gradients, modes see it as one op."""
    return function.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
        function.name(), "CompositeImplicitAutograd"
    )
