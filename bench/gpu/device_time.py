"""Times on a GPU as the GPU saw them: cold caches, no launch gaps, every sample kept.

A call is captured as a graph, so that the host's time to launch several kernels is not counted. Before each replay a
buffer larger than any second-level cache is read (not written: lines that wait to be written back would be, while the
call runs); events around the replay give the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple, Protocol

import torch

FLUSH_BYTES = 256 << 20
MAX_REPEATS, MIN_REPEATS = 50, 10
# A call's share of the time box; calls of milliseconds are repeated less often.
MICROSECONDS = 100_000.0


class Times(NamedTuple):
    """One call, many times."""

    samples: list[float]
    """Microseconds."""
    graph: bool
    """Whether the call could be captured; otherwise the host's launches are in the times."""

    @property
    def median(self) -> float:
        return median(self.samples)


class Timer(Protocol):
    """What times calls."""

    def times(self, call: Callable[[], Any]) -> Times: ...


class DeviceTimer:
    """Times calls on one CUDA device, one after another."""

    def __init__(self) -> None:
        self.cold = torch.zeros(FLUSH_BYTES // 4, dtype=torch.float32, device="cuda")
        self.stream = torch.cuda.Stream()

    def times(self, call: Callable[[], Any]) -> Times:
        """Return the times of single calls; what replaying costs at all is in them."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):  # compile, choose tiles, fill the allocator
                call()
        torch.cuda.synchronize()
        captured = waits_for_nothing(call)
        replay = call
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                call()
            replay = graph.replay
        replay()
        once = self._samples(replay, 3)
        repeats = int(MICROSECONDS / max(1.0, min(once)))
        repeats = max(MIN_REPEATS, min(MAX_REPEATS, repeats))
        return Times(self._samples(replay, repeats), captured)

    def _samples(self, call: Callable[[], Any], repeats: int) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in "ab"] for _ in range(repeats)]
        for start, end in events:
            self.cold.amax()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [round(start.elapsed_time(end) * 1e3, 2) for start, end in events]


def waits_for_nothing(call: Callable[[], Any]) -> bool:
    """Tell whether a call never waits for the device; a capture that fails would spoil what comes after it."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError:
        return False
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    return True


class HostTimer:
    """Stands in where there is no GPU: it runs every call, and its times mean nothing."""

    def times(self, call: Callable[[], Any]) -> Times:
        began = time.perf_counter()
        call()
        return Times([round((time.perf_counter() - began) * 1e6, 2)], False)


def timer_on(device: str) -> Timer:
    """Make the timer that suits a device."""
    return DeviceTimer() if device == "cuda" else HostTimer()


def timed(timer: Timer, call: Callable[[], Any]) -> dict[str, Any]:
    """Time a call, as results are written down."""
    times = timer.times(call)
    return {
        "median_microseconds": times.median,
        "graph": times.graph,
        "samples_microseconds": times.samples,
    }


def copy_bandwidth(timer: Timer, device: str, size: int) -> float:
    """Measure bytes per second of a copy on the device, bytes read and bytes written both counted."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (timer.times(lambda: target.copy_(source)).median * 1e-6)


def matmul_rate(timer: Timer, device: str, dtype: torch.dtype, size: int) -> float:
    """Measure floating-point operations per second of a large product of random numbers."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / (timer.times(lambda: a @ b).median * 1e-6)
