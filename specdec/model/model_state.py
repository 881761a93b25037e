"""What a model was when it was last looked at, so that a change since then is noticed before the next text.

Some changes can be followed: other values of the weights, other adapters, another number of threads. The rest, such as
training mode, another dtype or other modules, is refused by name.
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

# Elements per tensor whose values are kept.
SAMPLES = 16


class ModelState(NamedTuple):
    """A model's modules and weights, in brief."""

    modules: list[nn.Module]
    kinds: list[tuple[object, ...]]
    """Of each parameter dtype, device and shape."""
    weights: tuple[object, ...]
    """Where they lie, how often they were written to, some of their values and of the buffers'."""
    around: tuple[object, ...]
    """Adapters, the number of threads, and modules with hooks or a `forward` of their own."""

    @classmethod
    def of(cls, model: nn.Module) -> ModelState:
        """Look at a model; takes about a millisecond and one wait for the device."""
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
        """Raise ValueError, naming what it is, if something changed that cannot be followed."""
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
        raise ValueError(
            "autocast: expected it to be off, as a model's dtype is its own, got it on"
        )


def check_placement(model: nn.Module) -> None:
    """Raise ValueError unless all weights are in the memory of one device."""
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
    """Raise ValueError unless drafters may read a layer's weights beside it: no adapter, nothing quantised.

    Args:
        name: of the part.
        layer: with a `weight`.
        known: whether its class does nothing else with it.
    """
    weight = layer.weight
    if not known or not is_plain(weight):
        raise ValueError(
            f"target: expected a plain {name} for a drafter with weights, got {type(layer).__name__} with "
            f"{type(weight).__name__}; draft with lookup"
        )


def is_touched(module: nn.Module) -> bool:
    """Tell whether calling a module does more than its class says."""
    of_all = (everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks)
    hooks = [
        h
        for found in (*of_all, module._forward_hooks, module._forward_pre_hooks)
        for h in found.values()
    ]
    # Those of the library note what a caller asks for, and do nothing otherwise.
    others = [hook for hook in hooks if not str(hook.__module__).startswith("transformers.")]
    return bool(others) or "forward" in vars(module)


def _written(parameter: Tensor) -> tuple[int, int]:
    """Tell where values lie and how often they were written to; inference tensors do not count."""
    version = 0 if parameter.is_inference() else parameter._version
    # What wraps other tensors lies nowhere itself.
    return (parameter.data_ptr() if is_plain(parameter) else id(parameter)), version


@torch.no_grad()
def _samples(tensors: Iterable[Tensor]) -> list[bytes]:
    """Read some values of each tensor, evenly spaced."""
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
    """Tell what an adapter of PEFT does: which are active, merged, switched off, how strong."""
    return (
        list(layer.active_adapters),
        list(layer.merged_adapters),
        layer.disable_adapters,
        dict(getattr(layer, "scaling", {})),
    )
