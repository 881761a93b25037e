"""Which implementation runs: the Triton kernel, registered as an op, or the plain PyTorch reference.

The registered op *is* the kernel: opaque to `torch.compile`, so that a module which holds it compiles whole. The
reference is never registered: it is traced like the code around it, and Inductor may fuse it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ._ops import add_op_namespace_prefix, library, ops

Impl = Literal["auto", "triton", "reference"]

# Devices on which "auto" is the kernel.
KERNEL_DEVICES = {"cuda"}
# Classes of tensors that are nothing but their values; others wrap, shard or quantise some.
PLAIN: set[type[Tensor]] = {Tensor, nn.Parameter}


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor's memory holds its values, so that it may be read and packed."""
    return type(tensor) in PLAIN


def host_may_look(x: Tensor) -> bool:
    """Tell whether the host may read a tensor: on a CPU that is free, elsewhere it would wait for the device.

    In a graph nothing can be read.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def chooses_kernel(impl: Impl, *tensors: Tensor | None) -> bool:
    """Decide between kernel and reference; what is asked for by name is never replaced by the other.

    Args:
        impl: "triton", "reference", or "auto" for the kernel on GPUs and the reference elsewhere.
        tensors: the inputs.

    Raises:
        ValueError: if `impl` is none of these, the tensors lie on different devices, there is no kernel for their
            device, or a gradient would be lost.
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
        schema: name, arguments and results, as `torch.library` writes them.
        launch: runs the kernel; imports Triton when it is called, not before.
        fake: makes the results' shapes, dtypes and strides.

    Returns:
        The op, to be called with all its arguments by position.
    """
    name = schema.partition("(")[0]

    def launch_on_gpu(*arguments: Any) -> Any:
        # Triton launches on the current device, whichever the tensors are on.
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
