"""What the device does in each stage of a round, as a profile sees it."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from specdec.metrics import Metrics

MARK = "stage "


class MarkedMetrics(Metrics):
    """Marks stages in a profile, each with all that the device does for it."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with record_function(MARK + name), super().stage(name):
            yield
            if torch.cuda.is_available():
                torch.cuda.synchronize()


def device_stages(
    dry: bool, write: Callable[[Metrics], Any]
) -> tuple[dict[str, float], Counter[str]]:
    """Profile what `write` writes: the device's seconds per stage, and how many kernels and copies.

    `write` hands the metrics that it is given to the session.
    """
    activities = [ProfilerActivity.CPU, *([] if dry else [ProfilerActivity.CUDA])]
    with profile(activities=activities) as seen:
        write(MarkedMetrics())
    return sums_per_stage(seen.events(), DeviceType.CPU if dry else DeviceType.CUDA)


def sums_per_stage(
    events: Iterable[Any], device: DeviceType
) -> tuple[dict[str, float], Counter[str]]:
    """Sum and count the kernels that run on a device while a stage lasts; on a CPU, what operators themselves take."""
    marks = [e for e in events if e.name.startswith(MARK) and e.device_type == DeviceType.CPU]
    marks.sort(key=lambda mark: mark.time_range.start)
    starts = [mark.time_range.start for mark in marks]
    microseconds = {mark.name.removeprefix(MARK): 0.0 for mark in marks}
    counts: Counter[str] = Counter()
    for event in events:
        start = event.time_range.start
        at = bisect_right(starts, start) - 1
        # A profile repeats marks on the device's side.
        counts_here = event.device_type == device and not event.is_user_annotation
        if counts_here and at >= 0 and start <= marks[at].time_range.end:
            stage = marks[at].name.removeprefix(MARK)
            on_cpu = device == DeviceType.CPU
            microseconds[stage] += event.self_cpu_time_total if on_cpu else event.time_range.elapsed_us()  # fmt: skip
            counts[stage] += 1
    return {stage: total * 1e-6 for stage, total in microseconds.items()}, counts
