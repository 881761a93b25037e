"""Snapshots of a model, to detect changes before the next text.

Changed weights, adapters and thread numbers are followed. Other changes, such as training mode, another dtype or other
modules, raise an error that names them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as everywhere

from specdec_kernels.dispatch import is_plain

# Values per tensor that a snapshot keeps.
SAMPLES = 16


class ModelState(NamedTuple):
    """A snapshot of a model's modules and weights."""

    modules: list[nn.Module]
    kinds: list[tuple[object, ...]]
    """Dtype, device and shape of each parameter."""
    weights: tuple[object, ...]
    """Addresses, versions and some values of parameters, and some values of buffers."""
    around: tuple[object, ...]
    """Adapters, the number of threads, and modules with hooks or a `forward` of their own."""

    @classmethod
    def of(cls, model: nn.Module) -> ModelState:
        """Take a snapshot: about a millisecond, and one wait for the device."""
        modules = list(model.modules())
        parameters = [p for m in modules for p in m._parameters.values() if p is not None]
        buffers = [b for m in modules for b in m._buffers.values() if b is not None]
        return cls(
            modules,
            [(p.dtype, p.device, p.shape) for p in parameters],
            ([_written(p) for p in parameters], _samples(chain(parameters, buffers))),
            (
                [_adapter(m) for m in modules if hasattr(m, "merged_adapters")],
                torch.get_num_threads(),
                [id(m) for m in modules if is_touched(m)],
            ),
        )

    def check(self, now: ModelState, model: nn.Module) -> None:
        """Raise ValueError, naming the change, if something changed that cannot be followed."""
        if len(self.modules) != len(now.modules) or any(
            a is not b for a, b in zip(self.modules, now.modules, strict=True)
        ):
            before = {id(module) for module in self.modules}
            new = [name for name, m in model.named_modules() if id(m) not in before]
            raise ValueError(
                f"model: expected the modules it was loaded with, got {'another ' + new[0] if new else 'fewer'}; "
                "load it again with load_target"
            )
        if self.kinds != now.kinds:
            at = next(i for i, kind in enumerate(now.kinds) if kind != self.kinds[i])
            was, is_ = (" ".join(map(str, kinds[at][:2])) for kinds in (self.kinds, now.kinds))
            raise ValueError(
                f"model: expected weights as they were loaded, {was}, got {is_}; load it again with load_target"
            )


def check_mode(model: nn.Module) -> None:
    """Raise ValueError unless every part of a model is in evaluation mode and autocast is off."""
    if any(module.training for module in model.modules()):
        names = [name for name, module in model.named_modules() if module.training]
        where = f" in {names[-1]}" if names[0] else ""
        raise ValueError(
            f"model: expected evaluation mode (call model.eval()), got training mode{where}"
        )
    device = next(model.parameters()).device.type
    if torch.is_autocast_enabled(device):
        raise ValueError("autocast: expected off, as the model runs in its own dtype, got on")


def check_placement(model: nn.Module) -> None:
    """Raise ValueError unless all weights are in memory, on one device."""
    devices: dict[torch.device, str] = {}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        devices.setdefault(tensor.device, name)
    name = type(model).__name__
    if any(device.type == "meta" for device in devices):
        raise ValueError(
            f"model: expected weights in memory, got {name} offloaded or on the meta device; "
            "load it without device_map, offloading and init_empty_weights"
        )
    if len(devices) > 1:
        raise ValueError(
            f"model: expected {name} on one device, got {', '.join(sorted(map(str, devices)))}"
        )


def check_plain(name: str, layer: Any, known: bool) -> None:
    """Raise ValueError unless drafters can use a layer's weights directly: no adapter, no quantisation.

    Args:
        name: the part's name, for the error.
        layer: a layer with a `weight`.
        known: whether its class only applies the weight.
    """
    weight = layer.weight
    if not known or not is_plain(weight):
        raise ValueError(
            f"target: expected a plain {name} for a drafter with weights, got {type(layer).__name__} with "
            f"{type(weight).__name__}; draft with lookup"
        )


def is_touched(module: nn.Module) -> bool:
    """Return whether a module has hooks or a `forward` beyond its class."""
    of_all = (everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks)
    hooks = [
        h
        for found in (*of_all, module._forward_hooks, module._forward_pre_hooks)
        for h in found.values()
    ]
    # Transformers' own hooks only record outputs.
    others = [hook for hook in hooks if not str(hook.__module__).startswith("transformers.")]
    return bool(others) or "forward" in vars(module)


def _written(parameter: Tensor) -> tuple[int, int]:
    """Return a parameter's address and version; inference tensors have no version."""
    version = 0 if parameter.is_inference() else parameter._version
    # A tensor that wraps others has no address of its own.
    return (parameter.data_ptr() if is_plain(parameter) else id(parameter)), version


@torch.no_grad()
def _samples(tensors: Iterable[Tensor]) -> list[bytes]:
    """Read `SAMPLES` evenly spaced values of each tensor."""
    parts: defaultdict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        size = tensor.numel()
        if not size or tensor.is_meta or not (is_plain(tensor) and tensor.is_floating_point()):
            continue
        if not tensor.is_contiguous():
            tensor, size = tensor[(0,) * (tensor.ndim - 1)], tensor.shape[-1]
        count = min(SAMPLES, size)
        step = (size - 1) // max(1, count - 1) * tensor.stride(-1) if tensor.ndim else 1
        parts[tensor.dtype, tensor.device].append(tensor.as_strided((count,), (step,)))
    return [torch.cat(some).cpu().view(torch.uint8).numpy().tobytes() for some in parts.values()]


def _adapter(layer: Any) -> tuple[object, ...]:
    """Return the state of a PEFT adapter: which are active, merged or disabled, and their scaling."""
    return (
        list(layer.active_adapters),
        list(layer.merged_adapters),
        layer.disable_adapters,
        dict(getattr(layer, "scaling", {})),
    )
