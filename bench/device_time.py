"""Times on a GPU as the GPU saw them: cold caches, no launch gaps, medians.

A call is captured as a graph, so that the host's time to launch several kernels is not counted. Before each replay a
buffer larger than the second-level cache is written; events around the replay give the time.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

# More than any second-level cache there is.
FLUSH_BYTES = 256 << 20


class DeviceTimer:
    """Times calls on one CUDA device, one after another."""

    def __init__(self, repeats: int = 50) -> None:
        """Reserve what is written between calls."""
        self.repeats = repeats
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        self.empty = 0.0
        self.empty = self.median(lambda: None)

    def samples(self, call: Callable[[], Any]) -> list[float]:
        """Return the times of single calls in microseconds, without what an empty graph takes."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):  # compile, choose tiles, fill the allocator
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            call()
            if self.empty == 0.0:  # a graph has at least one node
                self.flush[:1].zero_()
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(self.repeats + 3)
        ]
        for start, end in events:
            self.flush.zero_()
            start.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 for start, end in events[3:]]

    def median(self, call: Callable[[], Any]) -> float:
        """Return the median of `samples`."""
        return median(self.samples(call))


def copy_bandwidth(timer: DeviceTimer, size: int = 1 << 30) -> float:
    """Measure bytes per second of a device-to-device copy, bytes read and bytes written both counted."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * size / (timer.median(lambda: target.copy_(source)) * 1e-6)


def matmul_rate(timer: DeviceTimer, dtype: torch.dtype, size: int = 8192) -> float:
    """Measure floating-point operations per second of a large product of random numbers."""
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    return 2 * size**3 / (timer.median(lambda: a @ b) * 1e-6)
