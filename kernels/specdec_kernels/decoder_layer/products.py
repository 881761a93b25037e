"""Matrix products on a CPU: PyTorch's, or with weights prepacked in oneDNN's layout.

A plain `F.linear` in bfloat16 reorders its weight at every call. The operators for prepacked weights are private to torch,
so a probe decides whether they are used. They also fuse the operation that follows a product.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from .reference import activate, linear
from .weights import Activation, LinearWeights

# Number of rows that the layout is optimised for: the width of a typical tree.
ROWS = 16
DTYPES = (torch.float32, torch.bfloat16)
POINTWISE: dict[Activation, tuple[str, str]] = {
    "silu": ("swish", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"),
}  # fmt: skip


class Product(Protocol):
    """A matrix product with fixed weights, `[T, in]` to `[T, out]`, with fused variants."""

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply, and add the bias."""
        ...

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Multiply, and add `[T, out]`."""
        ...

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """Multiply, then elementwise with `[T, out]`."""
        ...

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        """Multiply, then apply a nonlinearity."""
        ...


class PlainProduct:
    """A product with unmodified weights, shared with the model."""

    def __init__(self, weights: LinearWeights) -> None:
        """Create a product from weights `[out, in]`."""
        self.weights = LinearWeights(*(tuple(x.detach() for x in part) for part in weights))

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply, and add the bias."""
        return linear(x, self.weights)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Multiply, and add `[T, out]`."""
        return self(x).add_(other)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """Multiply, then elementwise with `[T, out]`."""
        return self(x).mul_(other)

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        """Multiply, then apply a nonlinearity."""
        return activate(self(x), activation)


class PrepackedProduct:
    """A product with a copy of the weights in oneDNN's layout."""

    def __init__(self, weights: LinearWeights) -> None:
        """Prepack weights `[out, in]`, float32 or bfloat16, on a CPU."""
        parts, biases = ([x.detach() for x in part] for part in weights)
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.bias = torch.cat(biases) if biases else None
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply, and add the bias."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")  # fmt: skip
        return out

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Multiply, and add `[T, out]`, with one rounding."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")  # fmt: skip
        return out

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """Multiply, then elementwise with `[T, out]`, with one rounding."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")  # fmt: skip
        return out

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        """Multiply, then apply a nonlinearity, with one rounding."""
        name, algorithm = POINTWISE[activation]
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, name, [], algorithm)  # fmt: skip
        return out


@cache
@torch.inference_mode()
def can_prepack(dtype: torch.dtype) -> bool:
    """Return whether torch has the operators for `dtype` and they agree with `F.linear` on a small product."""
    if dtype not in DTYPES:
        return False
    generator = torch.Generator().manual_seed(0)
    x, other, weight = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 32), (3, 48), (48, 32))
    )
    weights = LinearWeights((weight,))
    plain = PlainProduct(weights)
    try:
        ours = PrepackedProduct(weights)
        pairs = [
            (ours(x), plain(x)),
            (ours.plus(x, other), plain.plus(x, other)),
            (ours.times(x, other), plain.times(x, other)),
            *((ours.activated(x, a), plain.activated(x, a)) for a in POINTWISE),
        ]
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return all(torch.allclose(a.double(), b.double(), rtol=2e-2, atol=5e-2) for a, b in pairs)
