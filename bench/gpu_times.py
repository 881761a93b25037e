"""Part (b): how long do the kernels take, beside the GPU's limits and beside what others do in the same run?

Rows come in turns from all ops, what tells most first, as many as the time allows. A speed-up is written only for an
op whose tests and repeated launches passed in this run.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import torch
from device_time import DeviceTimer, HostTimer, Timer, copy_bandwidth, matmul_rate
from gpu_cases import OPS, cases_of, take_apart
from gpu_run import Run, results_of, run_options
from peers.references import peers_of
from torch import Tensor
from torch.utils._pytree import tree_leaves
from work import floor_microseconds, work_of

from specdec_kernels.testing.case import Case

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--warm", choices=OPS, help="Time nothing: compile all of one op's.")
    options = run_options(parser)
    run: Run = options.run
    # Inductor's C++ would take minutes on a CPU and tell nothing.
    backend = "eager" if run.dry else "inductor"
    if options.warm:
        warm(options.warm, run, backend)
        return
    with results_of(run, "times") as results, torch.inference_mode():
        timer = HostTimer() if run.dry else DeviceTimer()
        limits = measure_limits(run, timer)
        passed = passed_ops(run)
        results.note(limits=limits, passed=sorted(passed))
        # What failed a test may leave the device unusable, so it comes last.
        trusted = [op for op in OPS if op in passed]
        doubtful = [op for op in OPS if op not in passed]
        for op, case in (*in_turns(trusted, run.dry), *in_turns(doubtful, run.dry)):
            if run.late:
                break
            row = time_case(op, case, run, backend, timer)
            results.add(op=op, case=case.name, **row, **judge(row, limits, op in passed))
            if "error" in row and not run.dry:
                torch.cuda.synchronize()  # raises, and ends the part, where nothing can run any more


@torch.inference_mode()
def warm(op: str, run: Run, backend: str) -> None:
    """Fill the compilers' caches, beside tests that need memory too: what does not fit is left out."""
    if not run.dry:
        torch.cuda.set_per_process_memory_fraction(0.12)
    for case in cases_of(op, run.dry, grid=True):
        if not run.late:
            time_case(op, case, run, backend, HostTimer())


def in_turns(ops: list[str], dry: bool) -> Iterator[tuple[str, Case]]:
    """Give every op's first case, then every op's second, …; attention, which has most cases, three at a time."""
    lists = []
    for op in ops:
        of_op = [(op, case) for case in cases_of(op, dry, grid=True)]
        width = 3 if op == "tree_attention" else 1
        lists.append([of_op[i : i + width] for i in range(0, len(of_op), width)])
    for turn in zip_longest(*lists, fillvalue=[]):
        for chunk in turn:
            yield from chunk


def measure_limits(run: Run, timer: Timer) -> dict[str, float]:
    """Measure what this GPU can do, in this run: bytes and operations per second, and an empty call's time."""
    small = run.dry
    limits = {"bytes_per_second": copy_bandwidth(timer, run.device, 1 << (20 if small else 31))}
    for dtype in DTYPES:
        limits[str(dtype)] = matmul_rate(timer, run.device, dtype, 64 if small else 8192)
    one = torch.zeros(1, device=run.device)
    limits["empty_microseconds"] = timer.times(lambda: one.add_(1)).median
    return limits


def passed_ops(run: Run) -> set[str]:
    """Return the ops of which everything that was checked in this run is right."""
    rows = run.earlier("tests")["rows"]
    passed = {row["op"] for row in rows if row["kind"] == "tests" and row["ok"]}
    failed = {row["op"] for row in rows if row["kind"] == "repeats" and not row["ok"]}
    repeated = {row["op"] for row in rows if row["kind"] == "repeats"}
    return set() if "all" in failed else {op for op in passed - failed if {op, "all"} & repeated}


def time_case(op: str, case: Case, run: Run, backend: str, timer: Timer) -> dict[str, Any]:
    """Time a case and its peers; what fails says why."""
    gc.collect()
    if not run.dry:
        torch.cuda.empty_cache()
    try:
        call = take_apart(op, case, run.device)
        if call is None:
            return {"skipped": "calls launchers of its own"}
        expected = call.run()
        work = work_of(call, expected)
        times = {"kernel": timed(timer, call.run)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    for name, make in peers_of(call, backend).items():
        if run.late:
            break
        try:
            peer = make()
            difference = distance(peer(), expected)
            times[name] = {**timed(timer, peer), "distance": difference}
        except Exception as error:
            times[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    return {"bytes": work.bytes, "flops": work.flops, "dtype": str(work.dtype), "times": times}


def timed(timer: Timer, call: Callable[[], Any]) -> dict[str, Any]:
    times = timer.times(call)
    return {
        "median_microseconds": times.median,
        "graph": times.graph,
        "samples_microseconds": times.samples,
    }


def distance(found: Any, expected: Any) -> float | None:
    """Compare the first numbers that both return: |found - expected| / |expected|."""
    pair = [
        next((x.double() for x in tree_leaves(y) if isinstance(x, Tensor) and x.is_floating_point()), None)
        for y in (found, expected)
    ]  # fmt: skip
    if pair[0] is None or pair[1] is None or pair[0].shape != pair[1].shape:
        return None
    return ((pair[0] - pair[1]).norm() / pair[1].norm()).item()


def judge(row: dict[str, Any], limits: dict[str, float], passed: bool) -> dict[str, Any]:
    """Put the kernel's time beside what the GPU allows, and beside the peers' where it may be."""
    if "times" not in row:
        return {}
    microseconds = row["times"]["kernel"]["median_microseconds"]
    bandwidth = limits["bytes_per_second"]
    floor, bound = floor_microseconds(row["bytes"], row["flops"], bandwidth, limits[row["dtype"]])
    figures = {
        "floor_microseconds": floor,
        "bound": bound,
        "over_floor": microseconds / floor,
        "share_of_copy": row["bytes"] / (microseconds * 1e-6) / bandwidth,
    }
    if passed:
        figures["speedups"] = {
            name: times["median_microseconds"] / microseconds
            for name, times in row["times"].items()
            if name != "kernel" and "error" not in times
        }
    return figures


if __name__ == "__main__":
    main()
