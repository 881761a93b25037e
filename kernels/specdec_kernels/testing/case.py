"""Launches for compiling, counting and timing.

Each file of `cases` has `CASES`, with shapes of real models, and `SMALL` ones that an interpreter runs quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True, slots=True)
class Inputs:
    """Device of the inputs, and whether their values matter."""

    device: str = "cpu"
    random: bool = True
    """False if values are never read, as when kernels are only compiled."""

    def floats(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Create normally distributed numbers."""
        if not self.random:
            return torch.empty(shape, dtype=dtype, device=self.device)
        return torch.randn(shape, dtype=torch.float32, device=self.device).to(dtype)


@dataclass(frozen=True, slots=True)
class Case:
    """One call of a public function with `impl="triton"`."""

    name: str
    """Shapes and dtype, such as `llama3-8b-N64-P2048-bfloat16`."""
    prepare: Callable[[Inputs], Callable[[], Any]]
    """Creates the inputs and returns the call."""
    covering: tuple[str, ...] = ()
    """GPUs for which every test run compiles it; `make aot` compiles every case for every GPU."""
