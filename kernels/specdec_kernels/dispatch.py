"""Chooses between the Triton kernel, registered as an op, and the plain PyTorch reference.

A registered op is the kernel; it is opaque to `torch.compile`, so a module with it compiles without graph breaks. The
reference is not registered: `torch.compile` traces it, and Inductor may fuse it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ._ops import add_op_namespace_prefix, library, ops

Impl = Literal["auto", "triton", "reference"]

# Devices on which "auto" runs the kernel.
KERNEL_DEVICES = {"cuda"}
# Tensor classes whose memory holds their values; other classes wrap, shard or quantise them.
PLAIN: set[type[Tensor]] = {Tensor, nn.Parameter}


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor's memory holds its values, so that it can be read and packed."""
    return type(tensor) in PLAIN


def host_may_look(x: Tensor) -> bool:
    """Return whether the host can read a tensor for free: on a CPU, outside of graph capture.

    Elsewhere reading would wait for the device.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def chooses_kernel(impl: Impl, *tensors: Tensor | None) -> bool:
    """Return whether to run the kernel; an explicit `impl` never falls back to the other one.

    Args:
        impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere).
        tensors: the inputs.

    Raises:
        ValueError: if `impl` is none of these, the tensors are on different devices, there is no kernel for their
            device, or gradients are recorded, as kernels have no backward pass.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl: expected 'auto', 'triton' or 'reference', got {impl!r}")
    given = [tensor for tensor in tensors if tensor is not None]
    devices = {tensor.device for tensor in given}
    if len(devices) != 1:
        found = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"device: expected all tensors on one device, got {found}")
    kind = devices.pop().type
    if impl == "reference" or (impl == "auto" and kind not in KERNEL_DEVICES):
        return False
    if kind not in ("cuda", "cpu"):
        raise ValueError(f"impl: expected a CUDA device for 'triton', got tensors on {kind}")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        raise ValueError(
            f"impl: expected 'reference' where gradients are recorded, got {impl!r}; "
            "the kernels have no backward pass (run them under torch.no_grad())"
        )
    return True


def register(schema: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register a kernel as an op.

    Args:
        schema: name, arguments and results, in the form of `torch.library`.
        launch: runs the kernel; it must import Triton only when called.
        fake: returns tensors with the results' shapes, dtypes and strides.

    Returns:
        The op; it takes all arguments by position.
    """
    name = schema.partition("(")[0]

    def launch_on_gpu(*arguments: Any) -> Any:
        # Triton launches on the current device, not on the tensors' device.
        (device, *_) = (x.device for x in arguments if isinstance(x, Tensor))
        with torch.cuda.device(device):
            return launch(*arguments)

    def launch_on_cpu(*arguments: Any) -> Any:
        _require_interpreter(name)
        return launch(*arguments)

    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, launch_on_gpu, "CUDA")
    library.impl(name, launch_on_cpu, "CPU")
    torch.library.register_fake(add_op_namespace_prefix(name), fake, lib=library)
    return getattr(ops, name).default


def _require_interpreter(name: str) -> None:
    from triton import knobs

    from .gpu import pretended

    if not (knobs.runtime.interpret or pretended()):
        raise ValueError(
            f"impl: expected a CUDA device or TRITON_INTERPRET=1 for 'triton', got tensors of {name} on cpu"
        )
