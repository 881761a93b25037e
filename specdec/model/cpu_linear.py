"""Prepacked linear layers for the CPU: the same matrix product in less time per call.

A plain `F.linear` reorders its weight at every call, hundreds of times per token. Weights stored in oneDNN's layout save
that work and give the same bits in bf16. The operators are private to torch, so a probe decides whether they are used.
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

# Layers that a decoder block applies to the same input, by transformers' names.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Held(threading.local):
    """A thread's last shared product, and the layers that have not taken their part yet."""

    def __init__(self) -> None:
        self.input: Tensor | None = None
        self.parts: dict[int, Tensor] = {}


class SharedProduct:
    """One matrix product for sibling layers: the first layer called computes it, the others take their part.

    Each part is returned once, so a repeated input is computed again. The input must not change between the calls of
    one block's siblings; in all of transformers' blocks it does not. A copy packs its weights at its first use.
    """

    def __init__(self, layers: list[nn.Linear]) -> None:
        """Pack the layers' weights as one."""
        self.__setstate__(layers)
        self.prepack()

    def __getstate__(self) -> list[nn.Linear]:
        """Exclude the packed weights from copies: their layout is private to torch, and the copy's weights may change."""
        return self.layers

    def __setstate__(self, layers: list[nn.Linear]) -> None:
        self.layers = layers
        self.prepacked: PrepackedProduct | None = None
        self.prepacked_from: object = None
        self.held = _Held()

    def prepack(self) -> None:
        """Pack the current weights; drop the packed copy if they cannot be packed any more."""
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
        """Return address and version of each weight, which change when it is replaced or written."""
        return [
            (w.data_ptr(), 0 if w.is_inference() else w._version)
            for layer in self.layers
            for w in (layer.weight, layer.bias)
            if w is not None
        ]


class PrepackedLinear(nn.Linear):
    """A linear layer that multiplies with a packed copy of its weight.

    `weight` and `bias` stay, so state dicts do not change. Weights that are written or replaced are packed again at the
    next call; writes that bypass autograd (`.data`, inference tensors) need a call of `prepack_again`. With gradients or
    autocast the plain product is used, as the packed one supports neither.
    """

    product: SharedProduct
    place: int

    def forward(self, input: Tensor) -> Tensor:
        """Apply to `[..., in_features]`."""
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        return self.product.take(input, self.place)


def prepack_again(model: nn.Module) -> None:
    """Pack every prepacked layer again from its current weights."""
    for product in {m.product for m in model.modules() if isinstance(m, PrepackedLinear)}:
        product.prepack()


def undo(part: nn.Module) -> None:
    """Turn prepacked layers of a module back into plain ones, and free the copies."""
    for module in part.modules():
        if isinstance(module, PrepackedLinear):
            del module.product, module.place
            module.__class__ = nn.Linear  # type: ignore[assignment]


def _plain(layer: nn.Linear) -> bool:
    """Return whether a layer is only a product with its own plain weight on the CPU.

    Not plain: quantised weights (tensor subclasses), parametrisations (layer subclasses), offloading (another `forward`),
    and pre-forward hooks, which may write weights.
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
    """Prepack every plain linear layer of a CPU model in place.

    Args:
        model: a float32 or bfloat16 model. Layers of other dtypes or classes, with weights of other classes, on other
            devices, or with pre-forward hooks or another `forward` are not changed.
        apart: modules that are not changed.

    Returns:
        The number of layers packed; 0 if torch lacks the operators.
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
