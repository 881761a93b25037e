"""Weights packed once for the CPU: the same matrix product in less time per call.

A plain `F.linear` reorders its weight at every call; decoding makes hundreds of such calls per token. oneDNN's own
layout, made once, gives the same bits in bf16 and saves that work. The operators are private to torch, so a probe
decides whether they are used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Rows that the layout is made for: the width of a typical tree.
ROWS = 16


# Layers that a decoder block applies to one and the same input, by the names the library gives them.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class SharedProduct:
    """One product for sibling layers: whoever is called first computes it, the others take their part.

    A part is handed out once, so an input that comes again is multiplied again. Between the calls of the siblings of
    one block their input must stay as it is, which it does in every block that the library has.
    """

    def __init__(self, layers: list[nn.Linear]) -> None:
        """Pack the layers' weights as one."""
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.packed = _pack(torch.cat([layer.weight.detach() for layer in layers]))
        self.bias = torch.cat(biases) if biases else None
        self.sizes = [layer.out_features for layer in layers]
        self.input: Tensor | None = None
        self.parts: dict[int, Tensor] = {}

    def take(self, x: Tensor, place: int) -> Tensor:
        """Return the product of `x [..., in_features]` with the layer at `place`."""
        if self.input is not x or place not in self.parts:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self.packed, self.bias, "none", [], ""
            )
            self.input, self.parts = x, dict(enumerate(product.split(self.sizes, -1)))
        part = self.parts.pop(place)
        if not self.parts:
            self.input = None
        return part


class PackedLinear(nn.Linear):
    """A linear layer that multiplies with a packed copy of its weight.

    `weight` and `bias` stay as they are, so state dicts do not change; a weight changed later is not seen. Where
    gradients are recorded the plain product is taken, since the packed one has none.
    """

    product: SharedProduct
    place: int

    def forward(self, input: Tensor) -> Tensor:
        """Apply to `[..., in_features]`."""
        if torch.is_grad_enabled():
            return super().forward(input)
        return self.product.take(input, self.place)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    return packed


@torch.no_grad()
def can_pack(dtype: torch.dtype) -> bool:
    """Try the operators on a small product: are they there, and do they agree with `F.linear`?"""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(32, 48, bias=False, dtype=dtype)
    layer.weight.copy_(torch.randn(48, 32, generator=generator))
    x = torch.randn(3, 32, generator=generator).to(dtype)
    try:
        out = SharedProduct([layer]).take(x, 0)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.allclose(out.double(), layer(x).double(), rtol=1e-2, atol=1e-2)


@torch.no_grad()
def pack_linears(model: nn.Module) -> int:
    """Pack every plain linear layer of a CPU model in place.

    Args:
        model: float32 or bfloat16; layers of other dtypes, on other devices or of other classes stay as they are.

    Returns:
        The number of layers packed, 0 where torch has no such operators.
    """
    dtypes = {dtype for dtype in (torch.float32, torch.bfloat16) if can_pack(dtype)}

    def packable(layer: nn.Linear) -> bool:
        return (
            type(layer) is nn.Linear
            and layer.weight.device.type == "cpu"
            and layer.weight.dtype in dtypes
        )

    packed = 0
    for module in list(model.modules()):
        children = {name: x for name, x in module.named_children() if isinstance(x, nn.Linear)}
        groups = [group for group in SIBLINGS if set(group) <= set(children)]
        grouped = {name for group in groups for name in group}
        for names in [*groups, *((name,) for name in children if name not in grouped)]:
            layers = [children[name] for name in names]
            if not all(packable(layer) for layer in layers) or not _alike(layers):
                continue
            product = SharedProduct(layers)
            for place, layer in enumerate(layers):
                layer.__class__ = PackedLinear
                assert isinstance(layer, PackedLinear)
                layer.product, layer.place = product, place
            packed += len(layers)
    return packed


def _alike(layers: list[nn.Linear]) -> bool:
    return len({(x.in_features, x.weight.dtype, x.bias is None) for x in layers}) == 1
