"""Weights packed once for the CPU: the same matrix product in less time per call.

A plain `F.linear` reorders its weight at every call; decoding makes hundreds of such calls per token. oneDNN's own
layout, made once, gives the same bits in bf16 and saves that work. The operators are private to torch, so a probe
decides whether they are used.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from specdec_kernels.decoder_layer import LinearWeights, PrepackedProduct, can_prepack
from specdec_kernels.decoder_layer.products import DTYPES
from specdec_kernels.dispatch import is_plain

from .product_times import is_faster_prepacked

# Layers that a decoder block applies to one and the same input, by the names the library gives them.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Held(threading.local):
    """The product that a thread has computed last, and whose parts are still to be taken."""

    def __init__(self) -> None:
        self.input: Tensor | None = None
        self.parts: dict[int, Tensor] = {}


class SharedProduct:
    """One product for sibling layers: whoever is called first computes it, the others take their part.

    A part is handed out once, so an input that comes again is multiplied again. Between the calls of the siblings of
    one block their input must stay as it is, which it does in every block that the library has. A copy packs anew when
    it is first used.
    """

    def __init__(self, layers: list[nn.Linear]) -> None:
        """Pack the layers' weights as one."""
        self.__setstate__(layers)
        self.prepack()

    def __getstate__(self) -> list[nn.Linear]:
        """Leave the packed weights out of copies: they are torch's own layout, and the copy's weights may change."""
        return self.layers

    def __setstate__(self, layers: list[nn.Linear]) -> None:
        self.layers = layers
        self.prepacked: PrepackedProduct | None = None
        self.prepacked_from: object = None
        self.held = _Held()

    def prepack(self) -> None:
        """Pack the weights as they are now, or nothing where they have become ones that cannot be packed."""
        self.prepacked_from = self._weights()
        self.prepacked = None
        self.sizes = [layer.out_features for layer in self.layers]
        if all(_plain(layer) for layer in self.layers) and _alike(self.layers):
            biases = [layer.bias.detach() for layer in self.layers if layer.bias is not None]
            weights = tuple(layer.weight for layer in self.layers)
            self.prepacked = PrepackedProduct(LinearWeights(weights, tuple(biases)))

    def take(self, x: Tensor, place: int) -> Tensor:
        """Return the product of `x [..., in_features]` with the layer at `place`."""
        held = self.held
        if held.input is not x or place not in held.parts:
            if self._weights() != self.prepacked_from:
                self.prepack()
            if self.prepacked is None:
                layer = self.layers[place]
                return nn.functional.linear(x, layer.weight, layer.bias)
            product = self.prepacked(x)
            if len(self.layers) == 1:
                return product
            held.input, held.parts = x, dict(enumerate(product.split(self.sizes, -1)))
        part = held.parts.pop(place)
        if not held.parts:
            held.input = None
        return part

    def _weights(self) -> list[tuple[int, int]]:
        """Tell the weights apart from later ones: where they lie, and how often they were written to."""
        return [
            (w.data_ptr(), 0 if w.is_inference() else w._version)
            for layer in self.layers
            for w in (layer.weight, layer.bias)
            if w is not None
        ]


class PrepackedLinear(nn.Linear):
    """A linear layer that multiplies with a packed copy of its weight.

    `weight` and `bias` stay as they are, so state dicts do not change. Weights that are written to or replaced are
    packed again at the next call; of writes past autograd (`.data`, inference tensors) `prepack_again` has to be told.
    Where gradients are recorded or autocast is on, the plain product is taken: the packed one knows neither.
    """

    product: SharedProduct
    place: int

    def forward(self, input: Tensor) -> Tensor:
        """Apply to `[..., in_features]`."""
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        return self.product.take(input, self.place)


def prepack_again(model: nn.Module) -> None:
    """Pack every packed layer again, from the weights that are there now."""
    for product in {m.product for m in model.modules() if isinstance(m, PrepackedLinear)}:
        product.prepack()


def undo(part: nn.Module) -> None:
    """Make prepacked layers of a part plain ones again, and let their copies go."""
    for module in part.modules():
        if isinstance(module, PrepackedLinear):
            del module.product, module.place
            module.__class__ = nn.Linear  # type: ignore[assignment]


def _plain(layer: nn.Linear) -> bool:
    """Tell whether a layer is a product with its own plain weight on the CPU, and nothing else.

    Quantised weights are subclasses of tensors; parametrisations are subclasses of layers; offloading takes the place
    of `forward`, and hooks that run before it may write weights.
    """
    return (
        type(layer) in (nn.Linear, PrepackedLinear)
        and all(is_plain(p) for p in (layer.weight, layer.bias) if p is not None)
        and "forward" not in vars(layer)
        and not layer._forward_pre_hooks
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype in DTYPES
    )


@torch.no_grad()
def prepack_linears(model: nn.Module, *, apart: Iterable[nn.Module] = ()) -> int:
    """Pack every plain linear layer of a CPU model in place.

    Args:
        model: float32 or bfloat16; layers of other dtypes or classes, with weights of other classes, on other devices,
            with hooks before them or a `forward` of their own stay as they are.
        apart: parts of the model that stay as they are.

    Returns:
        The number of layers packed, 0 where torch has no such operators.
    """
    dtypes = {dtype for dtype in DTYPES if can_prepack(dtype)}
    packed = 0
    left = {module for part in apart for module in part.modules()}
    for module in [module for module in model.modules() if module not in left]:
        children = {name: x for name, x in module.named_children() if isinstance(x, nn.Linear)}
        groups = [group for group in SIBLINGS if set(group) <= set(children)]
        grouped = {name for group in groups for name in group}
        for names in [*groups, *((name,) for name in children if name not in grouped)]:
            layers = [children[name] for name in names]
            packable = (
                type(x) is nn.Linear and _plain(x) and x.weight.dtype in dtypes for x in layers
            )
            if not all(packable) or not _alike(layers):
                continue
            shape = sum(x.out_features for x in layers), layers[0].in_features
            if not is_faster_prepacked(shape, layers[0].weight.dtype):
                continue
            product = SharedProduct(layers)
            for place, layer in enumerate(layers):
                layer.__class__ = PrepackedLinear
                assert isinstance(layer, PrepackedLinear)
                layer.product, layer.place = product, place
            packed += len(layers)
    return packed


def _alike(layers: list[nn.Linear]) -> bool:
    return len({(x.in_features, x.weight.dtype, x.bias is None) for x in layers}) == 1
