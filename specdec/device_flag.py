"""Flags on the device, and when the host learns of them.

What may stop early, a draft or a walk, posts a flag per step and asks whether one has come true. On a CPU asking is free. On a GPU it would
hold the host up until all that is launched has run, so there the answer may be late: a copy is on its way, and what
has not arrived yet counts as false.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Flag(Protocol):
    """One bit that is posted again and again until it is true."""

    late: bool
    """Whether true may be seen later than at the first look, depending on time."""

    def post(self, flag: Tensor) -> None:
        """Take the newest state, a bool tensor of no dimensions; earlier ones hold on."""
        ...

    def seen(self) -> bool:
        """Tell whether a posted flag is known to be true."""
        ...


class WaitedFlag:
    """Knows at once, as the host waits for it."""

    late = False

    def __init__(self) -> None:
        """Begin with nothing posted."""
        self._newest: Tensor | None = None

    def post(self, flag: Tensor) -> None:
        """Keep it for the next look."""
        self._newest = flag

    def seen(self) -> bool:
        """Read what was posted since the last look."""
        flag, self._newest = self._newest, None
        return flag is not None and bool(flag)


class LateFlag:
    """Knows what has been copied to the host by now; never waits."""

    late = True

    def __init__(self) -> None:
        """Begin with nothing posted."""
        self._posted: list[tuple[Tensor, torch.cuda.Event]] = []

    def post(self, flag: Tensor) -> None:
        """Start a copy to pinned memory, which torch chooses where a copy to the host may not block."""
        copied = torch.cuda.Event()
        self._posted.append((flag.to("cpu", non_blocking=True), copied))
        copied.record(torch.cuda.current_stream(flag.device))

    def seen(self) -> bool:
        """Look at the copies that are complete."""
        while self._posted and self._posted[0][1].query():
            flag, _ = self._posted[0]
            if flag:
                return True
            del self._posted[0]
        return False


def flag_on(device: torch.device) -> Flag:
    """Make the flag that suits a device."""
    return LateFlag() if device.type == "cuda" else WaitedFlag()
