"""Records every memory access of a launch: which numbers it reads and writes, how often, and whether they are in bounds.

Kernels run in Triton's interpreter under tilelens. Each pointer argument carries its operand's index in unused address
bits, also through pointer arithmetic. An access is therefore assigned to its operand even if it hits another's memory, and
one that is out of bounds is recorded and skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from .interpreter import teach_bfloat16

# Addresses of a process end below 2^47.
TAG = np.uint64(48)
ADDRESS = np.uint64((1 << 48) - 1)


@dataclass(slots=True)
class Operand:
    """A tensor argument of a launch."""

    name: str
    """Name of the kernel's argument."""
    address: int
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    footprint: np.ndarray
    """Mask of the numbers between its first and last address that belong to it; strides may skip some."""
    reads: np.ndarray
    """Number of loads of each."""
    writes: np.ndarray
    """Number of stores of each."""

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return int(self.footprint.sum()) * self.itemsize

    @property
    def loaded(self) -> int:
        """Bytes loaded, repeats included."""
        return int(self.reads.sum(dtype=np.int64)) * self.itemsize

    @property
    def stored(self) -> int:
        """Bytes stored, repeats included."""
        return int(self.writes.sum(dtype=np.int64)) * self.itemsize

    @property
    def distinct_loaded(self) -> int:
        """Bytes loaded at least once."""
        return int(np.count_nonzero(self.reads)) * self.itemsize

    @property
    def distinct_stored(self) -> int:
        """Bytes stored at least once."""
        return int(np.count_nonzero(self.writes)) * self.itemsize

    def times_read(self) -> np.ndarray:
        """Return the number of loads of each number, in the tensor's shape."""
        strides = [self.reads.itemsize * stride for stride in self.strides]
        return np.lib.stride_tricks.as_strided(self.reads, self.shape, strides, writeable=False)


@dataclass(slots=True)
class Launch:
    """A launch and its accesses."""

    kernel: str
    operands: list[Operand] = field(default_factory=list)
    scalars: dict[str, Any] = field(default_factory=dict)
    """The other arguments, tile sizes included."""
    outside: list[str] = field(default_factory=list)
    """Out-of-bounds accesses, one line each."""

    def operand(self, name: str) -> Operand:
        """Return an operand by its argument's name."""
        return next(operand for operand in self.operands if operand.name == name)


def unavailable() -> str | None:
    """Return why accesses cannot be recorded here; None if they can."""
    if find_spec("tilelens") is None:
        return "tilelens is not installed"
    if torch.cuda.is_available():
        return "kernels are compiled for the GPU here, not interpreted"
    return None


@contextmanager
def recorded_accesses() -> Iterator[list[Launch]]:
    """Record every launch of the block, in order; needs `TRITON_INTERPRET=1` and tilelens."""
    launches: list[Launch] = []

    def run(kernel: Any, *args: Any, **kwargs: Any) -> None:
        launches.append(Launch(kernel.__name__))
        _trace(kernel, _recorder(launches[-1]), args, kwargs)

    with _launches_through(run):
        yield launches


@contextmanager
def recorded_proofs() -> Iterator[dict[str, list[str]]]:
    """Prove bounds with tilelens' symbolic sanitizer instead of running the block's launches.

    Yields:
        Per kernel, the possible out-of-bounds accesses. Constructs that the sanitizer cannot follow raise; results are not
        written.
    """
    proofs: dict[str, list[str]] = {}

    def run(kernel: Any, *args: Any, **kwargs: Any) -> None:
        from tilelens.clients.sanitizer import sanitizer

        # It skips launches that it has seen, and treats launches of equal shapes as the same.
        sanitizer._fn_symbolic_cache_set.clear()
        client = sanitizer.SymbolicSanitizer(abort_on_error=False)
        _trace(kernel, client, args, kwargs)
        found = [f"{record.op_type.__name__} of {record.tensor_name}" for record in client.records]
        proofs.setdefault(kernel.__name__, []).extend(found)

    with _launches_through(run):
        yield proofs


@contextmanager
def _launches_through(run: Callable[..., None]) -> Iterator[None]:
    # In this order, as tilelens restores the interpreter's functions of the time of its import.
    teach_bfloat16()
    import tilelens.core.frontend.triton  # noqa: F401
    from triton.runtime.interpreter import InterpretedFunction

    # Functions' loops are rewritten at the first call, and differently under tilelens.
    with (
        patch.dict(InterpretedFunction.rewritten_fn, clear=True),
        patch.object(InterpretedFunction, "run", run),
    ):
        yield


def _trace(kernel: Any, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    import tilelens
    from triton.runtime import interpreter

    patched, patch_lang = set(), interpreter._patch_lang

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        interpreter.GridExecutor(kernel.fn, kernel.arg_names, grid, [])(*args, **kwargs)

    def patch_once(function: Any) -> None:
        # Otherwise each call of a device function would patch the language again, half of the time.
        if function not in patched:
            patched.add(function)
            patch_lang(function)

    with (
        patch.object(interpreter.InterpretedFunction, "run", run),
        patch.object(interpreter, "_patch_lang", patch_once),
    ):
        tilelens.trace(client)(kernel).run(*args, **kwargs)
    tilelens.clear()  # it would keep every launch with its tensors


def _recorder(launch: Launch) -> Any:
    from tilelens.core.callbacks import ForLoopCallbacks, OpCallbacks
    from tilelens.core.client import Client
    from tilelens.core.data import Load, Store
    from triton.runtime.interpreter import TensorHandle, interpreter_builder

    builder = type(interpreter_builder)

    class Recorder(Client):
        NAME = "recorder"

        def arg_callback(self, name: str, arg: Any, arg_cvt: Any) -> None:
            if hasattr(arg, "data_ptr"):
                launch.operands.append(_operand(name, arg))
                arg_cvt.handle.data |= np.uint64(len(launch.operands)) << TAG
            else:
                launch.scalars[name] = arg

        def register_op_callback(self, op_type: Any, *args: Any, **kwargs: Any) -> Any:
            overriders = {Load: self._load, Store: self._store}
            return OpCallbacks(op_overrider=overriders.get(op_type))

        def _load(self, pointers: Any, mask: Any, *rest: Any) -> Any:
            own = self._note(pointers, mask, "load")
            return builder.create_masked_load(interpreter_builder, *own, *rest)

        def _store(self, pointers: Any, values: Any, mask: Any, *rest: Any) -> Any:
            pointers, mask = self._note(pointers, mask, "store")
            return builder.create_masked_store(interpreter_builder, pointers, values, mask, *rest)

        def _note(self, pointers: Any, mask: Any, kind: str) -> tuple[Any, Any]:
            wanted = mask.data.astype(bool)
            tagged = pointers.data[wanted]
            if tagged.size:
                index = tagged[0] >> TAG
                operand = launch.operands[int(index) - 1]
                first = (tagged & ADDRESS).astype(np.int64) - operand.address
                at = first // operand.itemsize
                own = (tagged >> TAG == index) & (first % operand.itemsize == 0)
                own &= (at >= 0) & (at < len(operand.footprint))
                own[own] = operand.footprint[at[own]]
                np.add.at(operand.reads if kind == "load" else operand.writes, at[own], 1)
                if not own.all():
                    launch.outside.append(
                        f"{launch.kernel}, program {self.grid_idx}: {kind} of {operand.name}, "
                        f"{own.size - own.sum()} of {own.size} numbers outside"
                    )
                wanted[wanted] = own
            return (
                TensorHandle(pointers.data & ADDRESS, pointers.dtype),
                TensorHandle(wanted, mask.dtype),
            )

        def register_for_loop_callback(self) -> Any:
            return ForLoopCallbacks()

        def grid_idx_callback(self, grid_idx: tuple[int, ...]) -> None:
            self.grid_idx = grid_idx

        def pre_run_callback(self, fn: Any) -> bool:
            return True

        def post_run_callback(self, fn: Any) -> bool:
            return True

        def pre_warmup_callback(self, *args: Any, **kwargs: Any) -> bool:
            return False

        def post_warmup_callback(self, *args: Any) -> None:
            """Do nothing: nothing is compiled."""

        def grid_callback(self, grid: tuple[int, ...]) -> None:
            """Do nothing: every program runs."""

        def finalize(self) -> list[Any]:
            return []

    return Recorder()


def _operand(name: str, x: Tensor) -> Operand:
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    footprint = torch.zeros(span if x.numel() else 0, dtype=torch.bool)
    footprint.as_strided(x.shape, x.stride()).fill_(True)
    layout = (x.data_ptr(), x.element_size(), tuple(x.shape), x.stride())
    reads, writes = (np.zeros(len(footprint), np.int32) for _ in range(2))
    return Operand(name, *layout, footprint.numpy(), reads, writes)
