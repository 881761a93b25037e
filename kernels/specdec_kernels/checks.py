"""Shared argument checks; errors name the argument, what was expected and what was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Most nodes of a tree in a kernel, as one program holds them all; also the limit of `specdec`.
MAX_NODES = 256
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_shape(name: str, x: Tensor, expected: Sequence[int]) -> None:
    """Raise ValueError unless `x` has the expected shape."""
    if tuple(x.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {list(expected)}, got {list(x.shape)}")


def check_integers(**tensors: Tensor | None) -> None:
    """Raise TypeError unless every tensor that is not None is int64."""
    for name, x in tensors.items():
        if x is not None and x.dtype != torch.int64:
            raise TypeError(f"{name}: expected int64, got {x.dtype}")


def check_float32(**tensors: Tensor) -> None:
    """Raise TypeError unless all tensors are float32."""
    for name, x in tensors.items():
        if x.dtype != torch.float32:
            raise TypeError(f"{name}: expected torch.float32 in a kernel, got {x.dtype}")


def check_kernel_float(**tensors: Tensor | None) -> None:
    """Raise TypeError unless all tensors that are not None have one dtype, which kernels support."""
    given = {name: x for name, x in tensors.items() if x is not None}
    (first, like), *others = given.items()
    if like.dtype not in FLOATS:
        raise TypeError(
            f"{first}: expected float32, float16 or bfloat16 in a kernel, got {like.dtype}"
        )
    for name, x in others:
        if x.dtype != like.dtype:
            raise TypeError(f"{name}: expected {like.dtype} as {first}, got {x.dtype}")


def check_last_stride(**tensors: Tensor | None) -> None:
    """Raise ValueError unless the last dimension of every tensor that is not None is contiguous."""
    for name, x in tensors.items():
        if x is not None and x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(
                f"{name}: expected a contiguous last dimension, got strides {x.stride()}"
            )
