"""Flags that are computed on the device and read by the host.

A loop that may stop early (a draft, a walk down the tree) posts one flag per step and asks whether any is true. On a
CPU, reading is free. On a GPU, reading would block the host until all launched work is done, so flags are copied
asynchronously, and a flag that has not arrived yet counts as false.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Flag(Protocol):
    """A flag that is posted once per step until it is true."""

    late: bool
    """Whether `seen` may report true later than it was posted, depending on timing."""

    def post(self, flag: Tensor) -> None:
        """Post a state: a bool tensor without dimensions. States posted earlier remain."""
        ...

    def seen(self) -> bool:
        """Return whether a posted flag is known to be true."""
        ...


class WaitedFlag:
    """A flag whose reading blocks the host until its value is known."""

    late = False

    def __init__(self) -> None:
        """Create a flag with nothing posted."""
        self._newest: Tensor | None = None

    def post(self, flag: Tensor) -> None:
        """Keep the flag for the next `seen`."""
        self._newest = flag

    def seen(self) -> bool:
        """Read the newest flag posted since the last call."""
        flag, self._newest = self._newest, None
        return flag is not None and bool(flag)


class LateFlag:
    """A flag that is read from completed copies only, without blocking the host."""

    late = True

    def __init__(self) -> None:
        """Create a flag with nothing posted."""
        self._posted: list[tuple[Tensor, torch.cuda.Event]] = []

    def post(self, flag: Tensor) -> None:
        """Start a copy to the host; torch uses pinned memory for a non-blocking one."""
        copied = torch.cuda.Event()
        self._posted.append((flag.to("cpu", non_blocking=True), copied))
        copied.record(torch.cuda.current_stream(flag.device))

    def seen(self) -> bool:
        """Read the completed copies."""
        while self._posted and self._posted[0][1].query():
            flag, _ = self._posted[0]
            if flag:
                return True
            del self._posted[0]
        return False


def flag_on(device: torch.device) -> Flag:
    """Create a `LateFlag` on CUDA, a `WaitedFlag` elsewhere."""
    return LateFlag() if device.type == "cuda" else WaitedFlag()
