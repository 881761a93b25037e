"""Part (b): how long do the kernels take, beside the GPU's limits and beside what others do in the same run?

Rows come in turns from all ops, what tells most first, as many as the time allows. A speed-up is written only for an
op of which all checks passed in this run, over what gives the same results and was timed in the same way.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import bench_ops
import torch
from device_time import DeviceTimer, HostTimer, Timer, copy_bandwidth, matmul_rate
from gpu_cases import OPS, cases_of, take_apart
from gpu_run import Run, results_of, run_options
from peers.references import peers_of
from torch import Tensor
from torch.utils._pytree import tree_leaves
from work import floors_of, sizes_of, work_of

from specdec_kernels.testing.case import Case

# Others add float32 numbers up in another order, which shows most in a likely token's small log-probability.
AGREES = {**bench_ops.AGREES, torch.float32: 1e-5}
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
        turns = [*in_turns(trusted, run.dry), *in_turns(doubtful, run.dry)]
        results.note(planned=len(turns))
        for op, case in turns:
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
    """Give every op's first case, then every op's second, …; attention, which has most cases, five at a time."""
    lists = []
    for op in ops:
        of_op = [(op, case) for case in cases_of(op, dry, grid=True)]
        width = 5 if op == "tree_attention" else 1
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
    failed = {row["op"] for row in rows if row["ok"] is False}
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
        again = call.repeatable()
        expected = [x.clone() for x in again()]
        work = work_of(call, call.run())
        times = {"kernel": timed(timer, call.run)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    for name, make in peers_of(call, backend).items():
        if run.late:
            break
        try:
            peer = make()
            difference = distance(again(peer), expected)
            times[name] = {**timed(timer, peer), "distance": difference}
        except Exception as error:
            times[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    return {**work._asdict(), "dtype": str(work.dtype), "sizes": sizes_of(call), "times": times}


def timed(timer: Timer, call: Callable[[], Any]) -> dict[str, Any]:
    times = timer.times(call)
    return {
        "median_microseconds": times.median,
        "graph": times.graph,
        "samples_microseconds": times.samples,
    }


def distance(found: Any, expected: Any) -> float:
    """Compare all numbers, |found - expected| / |expected|, and give the largest; where there are only ids, how many differ."""
    tensors = ([x for x in tree_leaves(y) if isinstance(x, Tensor)] for y in (found, expected))
    pairs = list(zip(*tensors, strict=True))
    for x, y in pairs:
        if x.shape != y.shape:
            raise ValueError(f"result: expected shape {list(y.shape)}, got {list(x.shape)}")
    numbers = [(x.float(), y.float()) for x, y in pairs if y.is_floating_point()]
    apart = [
        torch.where(x == y, 0.0, x - y).norm()
        / torch.where(y.isfinite(), y, 0.0).norm().clamp(min=1e-30)
        for x, y in numbers
    ] or [(x != y).float().mean() for x, y in pairs]
    return torch.stack(apart).max().item()  # NaN if any is


def judge(row: dict[str, Any], limits: dict[str, float], passed: bool) -> dict[str, Any]:
    """Put the kernel's time beside what the GPU allows, and beside the peers' where it may be."""
    if "times" not in row:
        return {}
    kernel = row["times"]["kernel"]
    microseconds, bandwidth = kernel["median_microseconds"], limits["bytes_per_second"]
    floors = floors_of(row["bytes"], row["flops"], bandwidth, limits[row["dtype"]])
    figures = {
        "floors_microseconds": floors,
        "over_floor": microseconds / max(floors.values()),
        "share_of_copy": row["bytes"] / (microseconds * 1e-6) / bandwidth,
    }
    if passed:
        figures["speedups"] = {
            name: times["median_microseconds"] / microseconds
            for name, times in row["times"].items()
            if times is not kernel and comparable(times, kernel, row["dtype"])
        }
    return figures


def comparable(times: dict[str, Any], kernel: dict[str, Any], dtype: str) -> bool:
    """Tell whether a peer gives the kernel's results, and whether the host's launches are in both times or in none."""
    if "error" in times or times["graph"] != kernel["graph"]:
        return False
    allowed = next(value for name, value in AGREES.items() if str(name) == dtype)
    return times["distance"] <= allowed


if __name__ == "__main__":
    main()
