"""Part three: how long do the kernels take, beside the GPU's limits and beside what others do in the same run?

First what tells most: the heads, drafting, attention, picking, each alone, then beside what has to be compiled; then all
other cases. Rows are times alone; `bench/report/gpu/figures.py` makes floors and speed-ups of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest

import torch

from bench.counted.work import sizes_of, work_of
from bench.gpu.device_time import HostTimer, Timer, copy_bandwidth, matmul_rate, timed, timer_on
from bench.gpu.jobs.sweep import Target, chosen, shipped_choice
from bench.gpu.run import Job, Row, Run, told
from bench.ops.cases import OPS, cases_of, distance, take_apart, uneven_cases
from bench.ops.peers.references import COMPILED, peers_of
from specdec_kernels.testing.case import Case

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FIRST = {"lm_head": 3, "draft_step": 3, "tree_attention": 8, "beam_step": 1, "pick_tokens": 3}
# Estimates chose the splits; these say what others would give.
SPLIT, SPLITS = "vicuna-7b-B1-N16-P8192-float16", (4, 8, 16)


def jobs(run: Run) -> list[Job]:
    """List all cases; a `warm` group compiles what will be compared first, and times nothing."""
    all_cases = in_turns(run.dry)
    count = sum(FIRST.values())
    first, rest = (all_cases[:count], all_cases[count:])
    if run.group.startswith("warm"):
        return warm_jobs(run, first)
    if run.dry:
        return [
            Job("limits", partial(measure_limits, run)),
            *(job(run, op, case, "alone") for op, case in all_cases),
            *(job(run, op, case, "compiled") for op, case in all_cases[:2]),
        ]
    uneven = [("tree_attention", case) for case in uneven_cases(run.dry)]
    split = split_case()
    return [
        Job("limits", partial(measure_limits, run)),
        *(job(run, op, case, "alone") for op, case in [*first, *uneven]),
        *(Job(f"{split.name} in {n}", partial(time_splits, run, split, n)) for n in SPLITS),
        *(job(run, op, case, "compiled") for op, case in first),
        *(job(run, op, case, "alone") for op, case in rest),
        *(job(run, op, case, "compiled") for op, case in [*uneven, *rest]),
    ]


def job(run: Run, op: str, case: Case, kind: str) -> Job:
    return Job(f"{op} {case.name} {kind}", partial(time_case, run, op, case, kind))


def in_turns(dry: bool) -> list[tuple[str, Case]]:
    """Give the first cases of the ops that tell most, then one of each op at a time; of attention, which has most, five."""
    lists = {op: cases_of(op, dry, grid=True) for op in OPS}
    first = [(op, case) for op, count in FIRST.items() for case in lists[op][:count]]
    rest = []
    for op in sorted(OPS, key=lambda op: (op not in FIRST, op)):
        left = [(op, case) for case in lists[op][FIRST.get(op, 0) :]]
        width = 5 if op == "tree_attention" else 1
        rest.append([left[at : at + width] for at in range(0, len(left), width)])
    turns = zip_longest(*rest, fillvalue=[])
    return first + [pair for turn in turns for chunk in turn for pair in chunk]


def warm_jobs(run: Run, cases: list[tuple[str, Case]]) -> list[Job]:
    """Fill the compilers' caches with a share of the cases, while other processes come first."""
    os.nice(19)
    first, step = (int(number) for number in run.group.partition(" ")[2].split("/"))

    def compile_peers(op: str, case: Case) -> Iterator[Row]:
        for _ in time_case(run, op, case, "compiled", HostTimer()):
            yield from ()

    return [Job(f"{op} {case.name}", partial(compile_peers, op, case)) for op, case in cases[first::step]]  # fmt: skip


@torch.inference_mode()
def measure_limits(run: Run) -> Iterator[Row]:
    """Measure what this GPU can do, in this run: bytes and operations per second, and an empty call's time."""
    timer, small = timer_on(run.device), run.dry
    limits = {"bytes_per_second": copy_bandwidth(timer, run.device, 1 << (20 if small else 31))}
    for dtype in DTYPES:
        limits[str(dtype)] = matmul_rate(timer, run.device, dtype, 64 if small else 8192)
    one = torch.zeros(1, device=run.device)
    limits["empty_microseconds"] = timer.times(lambda: one.add_(1)).median
    yield {"limits": limits}


@torch.inference_mode()
def time_case(
    run: Run, op: str, case: Case, kind: str, timer: Timer | None = None
) -> Iterator[Row]:
    """Time a case: `alone` with what runs as it is, or beside what has to be `compiled`; a peer that fails says why."""
    timer = timer or timer_on(run.device)
    call = take_apart(op, case, run.device)
    facts: Row = {"op": op, "of": case.name}
    if call is None:
        yield {**facts, "skipped": "calls launchers of its own"}
        return
    again = call.repeatable()
    expected = [x.clone() for x in again()]
    times = {"kernel": timed(timer, call.run)} if kind == "alone" else {}
    # Inductor's C++ would take minutes on a CPU and tell nothing.
    for name, make in peers_of(call, "eager" if run.dry else "inductor").items():
        if (name in COMPILED) != (kind == "compiled"):
            continue
        try:
            peer = make()
            difference = distance(again(peer), expected)
            times[name] = {**timed(timer, peer), "distance": difference}
        except Exception as error:
            times[name] = {"error": told(error)["error"]}
    work = work_of(call, call.run())
    yield {
        **facts, **work._asdict(), "dtype": str(work.dtype), "sizes": sizes_of(call), "times": times
    }  # fmt: skip


def split_case() -> Case:
    from specdec_kernels.testing.cases import tree_attention as attention

    shape = (1, 16, *attention.VICUNA)
    return Case(SPLIT, attention.prepare(shape, 8192, attention.FP16))


@torch.inference_mode()
def time_splits(run: Run, case: Case, splits: int) -> Iterator[Row]:
    """Time attention with a number of splits in the place of the one it would choose."""
    op = "tree_attention"
    call = take_apart(op, case, run.device)
    assert call is not None
    shipped = shipped_choice(op, Target(call.run, None))
    with chosen(op, {**shipped, "splits": splits}):
        times = {"kernel": timed(timer_on(run.device), call.run)}
    work = work_of(call, call.run())
    facts = {"op": op, "of": f"{case.name} in {splits} splits"}
    yield {
        **facts, **work._asdict(), "dtype": str(work.dtype), "sizes": sizes_of(call), "times": times
    }  # fmt: skip
