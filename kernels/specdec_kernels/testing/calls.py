"""Counts what code asks of a GPU: kernel launches, ATen ops that launch kernels, and waits of the host.

Works on a GPU, and within `absent_gpu` without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._ops import NAMESPACE
from .absent_gpu import is_composite
from .poison import filled_empty

# Ops whose result, or its size, the host knows only when the device is done; `isin` removes duplicates if it looks for
# ten or more.
READS = {
    "_local_scalar_dense", "_unique2", "bincount", "equal", "isin", "masked_select", "nonzero", "unique_consecutive",
    "unique_dim",
}  # fmt: skip
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = {"_to_copy", "copy_"}
# Ops that launch nothing, though their schema does not mark them as views.
LAUNCHES_NOTHING = {
    "_unsafe_view", "detach_", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty", "new_empty_strided",
}  # fmt: skip


@dataclass(slots=True)
class Counts:
    """Numbers of calls, by name."""

    ops: Counter[str] = field(default_factory=Counter)
    """Registered ops of this package."""
    kernels: Counter[str] = field(default_factory=Counter)
    """Launches of this package's kernels."""
    aten: Counter[str] = field(default_factory=Counter)
    """ATen ops that launch at least one kernel of torch."""
    reads: Counter[str] = field(default_factory=Counter)
    """Reads of values for which the host waits for the device."""
    uploads: Counter[str] = field(default_factory=Counter)
    """Copies from the host, after each of which torch also waits for the stream."""

    def __iadd__(self, other: Counts) -> Counts:
        """Add other counts."""
        for each in fields(self):
            getattr(self, each.name).update(getattr(other, each.name))
        return self


@contextmanager
def counted_calls(*, dry: bool = False) -> Iterator[Calls]:
    """Count calls within a `with` block.

    Args:
        dry: count kernel launches without running them; their results are zeros, so generated text is meaningless.
            Fast, and the counts are equal if no value that the host reads decides what is launched.
    """
    from triton import knobs
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    calls = Calls()
    kernel = InterpretedFunction if knobs.runtime.interpret else JITFunction
    run: Callable[..., Any] = kernel.run

    def counted(function: Any, *args: Any, **kwargs: Any) -> Any:
        calls.counts.kernels[function.fn.__name__] += 1
        return None if dry else run(function, *args, **kwargs)

    outputs = filled_empty(Tensor.zero_) if dry else nullcontext()
    with patch.object(kernel, "run", counted), outputs, calls:
        yield calls


class Calls(TorchDispatchMode):
    """Counts calls into `counts`, which may be replaced at any time."""

    def __init__(self) -> None:
        """Create empty counts."""
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an op and count it."""
        kwargs = kwargs or {}
        if is_composite(function):
            with self:
                return function.decompose(*args, **kwargs)
        out = function(*args, **kwargs)
        namespace, _, name = function._schema.name.partition("::")
        if namespace == NAMESPACE:
            self.counts.ops[name] += 1
        else:
            self._count(name, function, args, kwargs, out)
        return out

    def _count(self, name: str, function: Any, args: Any, kwargs: Any, out: Any) -> None:
        given, made = _tensors((args, kwargs)), _tensors(out)
        if not any(map(_on_gpu, given + made)):
            return
        if name in COPIES and _on_gpu(given[-1]) != _on_gpu(made[0]):
            if not (kwargs.get("non_blocking") or args[2:] == (True,)):
                counter = self.counts.reads if _on_gpu(given[-1]) else self.counts.uploads
                counter[name] += 1
            return
        places = _tensors(args[1]) if name in INDEXED else []
        if not all(map(_on_gpu, places)):
            self.counts.uploads[name] += 1
        masked = any(x.dtype in (torch.bool, torch.uint8) for x in places)
        counted = function._overloadname == "Tensor" and kwargs.get("output_size") is None
        if name in READS or masked or (name == "repeat_interleave" and counted):
            self.counts.reads[name] += 1
        views = any(
            x.alias_info is not None and not x.alias_info.is_write for x in function._schema.returns
        )
        if not views and name not in LAUNCHES_NOTHING and any(x.numel() for x in made):
            self.counts.aten[name] += 1


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _on_gpu(x: Tensor) -> bool:
    return x.device.type != "cpu"
