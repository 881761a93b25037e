"""Ahead-of-time compilation: compiles kernels for absent GPUs and reports registers, spills and instructions.

Launchers run unchanged on CPU tensors, with a driver that never launches in place of the GPU's. The compiled kernels are
therefore those of a real launch: same tiles, strides and alignment.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from ..gpu import KNOWN, pretend


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel, compiled for one GPU."""

    kernel: str
    arch: str
    """`sm_90`, …"""
    registers: int
    """Per thread (vector registers on AMD)."""
    spills: int
    """Bytes of stack per thread (NVIDIA) or spilled vector registers (AMD); scalar spills go to vector registers."""
    shared_bytes: int
    """Shared memory per program."""
    warps: int
    instructions: dict[str, int]
    """Number of occurrences of selected instructions."""
    dot_rows: int
    """M of its largest product of 16-bit numbers; 0 without one."""
    tf32: bool
    """Whether any product uses TF32."""


COUNTED = {
    "HMMA": r"\bHMMA\b",  # tensor cores: Ampere's,
    "HGMMA": r"\bHGMMA\b",  # Hopper's,
    "UTCMMA": r"\bUTC\w*MMA\b",  # Blackwell's,
    "MFMA": r"\bv_mfma",  # AMD's
    "loads": r"\bLDG(STS)?\b|\b(global|buffer)_load_(dword|short|ushort|ubyte)",  # of global memory
    "loads of 16 bytes": r"\bLDG(STS)?\.E[.\w]*\.128|\b(global|buffer)_load_dwordx4",
    "loads of local memory": r"\bLDL\b|\bscratch_load",
}


class Key(NamedTuple):
    """The key under which Triton caches a compiled kernel."""

    kernel: str
    constants: str
    """Its constants by name, such as tile sizes and which pointers are None."""
    arguments: str
    """The properties of other arguments by name: types, alignment, whether 1 or a multiple of 16."""
    options: str


def compile_launches(arch: str, launch: Callable[[], Any]) -> list[Compiled]:
    """Compile every kernel that `launch` would launch on a GPU.

    Args:
        arch: one of `gpu.KNOWN`.
        launch: calls public functions with `impl="triton"` on CPU tensors, whose contents are never read.

    Returns:
        One entry per launch, in order.

    Raises:
        RuntimeError: if kernels are interpreted in this process.
    """
    _refuse_interpreter()
    with _recorded(arch) as kernels, pretend(KNOWN[arch]):
        launch()
    return [_inspect(kernel, arch) for kernel in kernels]


def launch_keys(arch: str, launch: Callable[[], Any]) -> Counter[Key]:
    """Return the cache keys of all kernels that `launch` would launch, without compiling.

    Arguments and errors as in `compile_launches`.

    Returns:
        The number of launches per key.
    """
    keys: Counter[Key] = Counter()

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        # As `JITFunction.run` does.
        *_, bind = kernel.device_caches[arch]
        _, kinds, options = bind(*args, **{"debug": kernel.debug, **kwargs})
        constants, others = [], []
        for parameter, (kind, value) in zip(kernel.params, kinds, strict=True):
            # Arguments that are 1 or None become constants too; None is a choice, like a tile size.
            if parameter.is_constexpr or (kind == "constexpr" and value is None):
                constants.append(f"{parameter.name}={value}")
            else:
                others.append(f"{parameter.name}={kind} {value}")
        keys[Key(kernel.fn.__name__, ", ".join(constants), ", ".join(others), str(options))] += 1

    _refuse_interpreter()
    with _launches_through(arch, note), pretend(KNOWN[arch]):
        launch()
    return keys


def _refuse_interpreter() -> None:
    from triton import knobs

    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET: expected unset, got 1; nothing compiles under it")


@contextmanager
def _recorded(arch: str) -> Iterator[list[Any]]:
    from triton.runtime.jit import JITFunction

    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernels.append(run(kernel, *args, grid=grid, warmup=True, **kwargs))
        return kernels[-1]

    with _launches_through(arch, compile_only):
        yield kernels


@contextmanager
def _launches_through(arch: str, instead: Callable[..., Any]) -> Iterator[None]:
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    class NoDriver:
        """The parts of a GPU's driver that compiling uses; caches are kept per `get_current_device`."""

        def get_current_device(self) -> str:
            return arch

        def get_current_stream(self, device: str) -> int:
            return 0

        def get_current_target(self) -> Any:
            if arch.startswith("gfx"):
                return GPUTarget("hip", arch, 64)
            return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)

    before = driver._active
    driver.set_active(NoDriver())
    try:
        with patch.object(JITFunction, "run", instead):
            yield
    finally:
        driver._active = before


def _inspect(kernel: Any, arch: str) -> Compiled:
    ir = kernel.asm["ttir"]
    if arch.startswith("gfx"):
        code = kernel.asm["amdgcn"]
        found = {name: int(value) for name, value in re.findall(r"\.(\w+_count): +(\d+)", code)}
        registers, spills = found["vgpr_count"], found["vgpr_spill_count"]
    else:
        usage, code = _disassemble(kernel.asm["cubin"])
        # LOCAL is 0 even if registers spill; STACK is not.
        found = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
        registers, spills = found["REG"], found["STACK"]
    return Compiled(
        kernel=kernel.metadata.name,
        arch=arch,
        registers=registers,
        spills=spills,
        shared_bytes=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
        instructions={name: len(re.findall(pattern, code)) for name, pattern in COUNTED.items()},
        dot_rows=max(map(int, re.findall(r"tt\.dot .* : tensor<(\d+)x\d+xb?f16>", ir)), default=0),
        # Products of 16-bit numbers contain the word too, without effect.
        tf32=re.search(r"tt\.dot .*tf32.* : tensor<\d+x\d+xf32>", ir) is not None
        or "TF32" in code
        or "_xf32" in code,
    )


def _disassemble(cubin: bytes) -> tuple[str, str]:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return tuple(
            subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout
            for command in ([tools / "cuobjdump", "-res-usage"], [tools / "nvdisasm"])
        )  # type: ignore[return-value]
