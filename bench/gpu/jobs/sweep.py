"""Part six: would other tiles, warps, stages or splits be faster than the shipped ones?

From the shipped choice one step at a time in each number; the best one becomes the next to start from, until no step
helps. Other processes compile and check each choice first: it may be no further from the truth than twice the shipped
one's distance.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from bench.gpu.device_time import Timer, timed, timer_on
from bench.gpu.run import Job, Row, Run
from bench.ops.cases import cases_of, distance, take_apart
from specdec_kernels.device.skinny_linear import Tiles as LinearTiles
from specdec_kernels.device.skinny_linear import launch_skinny_linear
from specdec_kernels.testing.case import Inputs
from specdec_kernels.tree_attention.tiles import Tiles as AttentionTiles

Choice = dict[str, int | None]
WARPS = range(2, 17)
# What is no faster than this is noise.
MIN_STEP = 0.98
# What others may be tried; the kernels' own limits, and what registers hold.
RANGES = {
    "tree_attention": {
        "block_m": range(16, 129), "block_n": range(16, 65), "warps": WARPS, "stages": range(1, 6),
        "splits": range(1, 129),
    },
    "lm_head": {
        "block_rows": range(16, 129), "block_k": range(16, 257), "warps": WARPS,
        "stages": range(1, 9),
    },
    "skinny_linear": {
        "features": range(16, 129), "rows": range(16, 65), "depth": range(16, 257), "warps": WARPS,
        "stages": range(1, 13),
    },
}  # fmt: skip
TARGETS = [
    ("tree_attention", "llama3-8b-B8-N64-P8192-bfloat16"),
    ("lm_head", "llama3-8b-R16-k10-bfloat16"),
    ("skinny_linear", "10x8192x8192-bfloat16"),
    ("lm_head", "llama3-8b-R80-k10-bfloat16"),
    ("tree_attention", "llama3-8b-B1-N16-P8192-bfloat16"),
    ("tree_attention", "llama3-8b-B1-N1-P8192-bfloat16"),
    ("skinny_linear", "8x1152x1152-bfloat16"),
    ("lm_head", "smollm2-R16-k4-bfloat16"),
    ("tree_attention", "vicuna-7b-B1-N64-P2000-float16"),
    ("lm_head", "llama3-8b-R1-k1-bfloat16"),
    ("tree_attention", "smollm2-B1-N16-P200-float32"),
]
TARGETS_DRY = [("tree_attention", "B2-N5-P40-float32"), ("skinny_linear", "3x40x24-float32")]


class Chooser(NamedTuple):
    """A function that a launcher gets numbers from."""

    module: str
    name: str
    fields: tuple[str, ...]
    make: Callable[..., Any]
    """Makes what it returns from the fields' values."""


CHOOSERS = {
    "tree_attention": [
        Chooser("tree_attention.kernel", "choose_tiles", AttentionTiles._fields, AttentionTiles),
        Chooser("tree_attention.kernel", "choose_splits", ("splits",), int),
    ],
    "lm_head": [
        Chooser(
            "lm_head.kernel",
            "_tiles",
            ("block_rows", "block_k", "warps", "stages"),
            lambda *values: values,
        )
    ],
    "skinny_linear": [
        Chooser("device.skinny_linear", "choose_tiles", LinearTiles._fields, LinearTiles)
    ],
}


class Target(NamedTuple):
    """What is tuned, and what it should return."""

    run: Callable[[], Any]
    expected: Any


def jobs(run: Run) -> list[Job]:
    """List the targets, those that say most first."""
    targets = TARGETS_DRY if run.dry else TARGETS
    return [Job(f"{op} {case}", partial(sweep, run, op, case)) for op, case in targets]


@cache
def checkers(dry: bool) -> ProcessPoolExecutor:
    """Start the processes that compile and check."""
    workers = 1 if dry else min(8, (os.cpu_count() or 2) // 2)
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


def sweep(run: Run, op: str, case: str) -> Iterator[Row]:
    """Walk from the shipped choice to the best one."""
    timer = timer_on(run.device)
    target = make_target(op, case, run.dry)
    shipped = shipped_choice(op, target)
    allowed = 2 * distance(target.run(), target.expected)
    best = start = {"choice": shipped, **time_choice(op, shipped, target, timer)}
    tried = {key(shipped): start}
    while not run.late:
        near = [c for c in neighbours(op, best["choice"]) if key(c) not in tried]
        near = near[:2] if run.dry else near
        tasks = [(op, case, run.dry, choice, allowed) for choice in near]
        try:  # all of them at once: nothing else runs while times are taken
            wrong = list(checkers(run.dry).map(check, tasks))
        except BrokenProcessPool:
            checkers.cache_clear()  # the next target has new ones
            raise
        for choice, error in zip(near, wrong, strict=True):
            tried[key(choice)] = {"choice": choice}
            tried[key(choice)] |= (
                {"error": error} if error else time_choice(op, choice, target, timer)
            )
        timed_ones = (t for t in tried.values() if "error" not in t)
        fastest = min(timed_ones, key=lambda t: t["median_microseconds"])
        if run.dry or fastest["median_microseconds"] > MIN_STEP * best["median_microseconds"]:
            break
        best = fastest
    # Side by side once more: the first of many to be timed may have been unlucky, and the best of many lucky.
    again = [time_choice(op, t["choice"], target, timer) for t in (start, best)]
    yield {
        "op": op,
        "shipped": shipped,
        "best": best["choice"],
        "gain": again[0]["median_microseconds"] / again[1]["median_microseconds"],
        "again": again,
        "tried": list(tried.values()),
    }


@lru_cache(1)
def make_target(op: str, case: str, dry: bool) -> Target:
    """Make inputs and what should come out, in float32."""
    device = "cpu" if dry else "cuda"
    if op == "skinny_linear":
        return _linear(case, device)
    (found,) = [c for c in cases_of(op, dry, grid=True) if c.name == case][:1]
    call = take_apart(op, found, device)
    assert call is not None
    wide = tree_map_only(
        Tensor, lambda x: x.float() if x.is_floating_point() else x, call.arguments
    )
    return Target(call.run, call._replace(arguments=wide).run("reference"))


def _linear(case: str, device: str) -> Target:
    shape, _, dtype = case.partition("-")
    rows, features, depth = map(int, shape.split("x"))
    torch.manual_seed(0)
    inputs = Inputs(device)
    sizes = ((rows, depth), (features, depth), (features,), (rows, features))
    x, weight, bias, residual = (
        inputs.floats(*size, dtype=getattr(torch, dtype)) for size in sizes
    )
    weight *= depth**-0.5
    expected = residual.float() + F.silu(F.linear(x.float(), weight.float(), bias.float()))
    options = {"bias": bias, "silu": True, "residual": residual}
    return Target(lambda: launch_skinny_linear(x, weight, **options), expected)


def shipped_choice(op: str, target: Target) -> Choice:
    """Run, and note what the launcher chose; of several times the last."""
    choice: Choice = {}

    def spy(choose: Callable[..., Any], fields: tuple[str, ...]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            value = choose(*args)
            values = value if isinstance(value, tuple) else (value,)
            choice.update(zip(fields, values, strict=True))
            return value

        return noted

    with replaced(op, lambda chooser, choose: spy(choose, chooser.fields)):
        target.run()
    return choice


def chosen(op: str, choice: Choice) -> ExitStack:
    """Let launchers choose this."""

    def replacement(chooser: Chooser, choose: Callable[..., Any]) -> Callable[..., Any]:
        value = chooser.make(*(choice[field] for field in chooser.fields))
        return lambda *args: value

    return replaced(op, replacement)


def replaced(op: str, replacement: Callable[[Chooser, Callable[..., Any]], Any]) -> ExitStack:
    """Put something in the place of what an op's launcher asks."""
    with ExitStack() as stack:
        for chooser in CHOOSERS[op]:
            module = importlib.import_module(f"specdec_kernels.{chooser.module}")
            new = replacement(chooser, getattr(module, chooser.name))
            stack.enter_context(patch.object(module, chooser.name, new))
        return stack.pop_all()


def neighbours(op: str, choice: Choice) -> list[Choice]:
    """Take one step up and down in each number: stages by one, all others by a factor of two."""
    near = []
    for name, values in RANGES[op].items():
        value = choice[name] or 0
        steps = (value - 1, value + 1) if name == "stages" else (value // 2, value * 2)
        # A cap on registers belongs to one number of rows and of warps.
        freed = (
            {"registers": None} if "registers" in choice and name in ("block_m", "warps") else {}
        )
        near += [{**choice, **freed, name: step} for step in steps if step in values]
    return near


def key(choice: Choice) -> tuple[tuple[str, int | None], ...]:
    return tuple(sorted(choice.items()))


def time_choice(op: str, choice: Choice, target: Target, timer: Timer) -> dict[str, Any]:
    with chosen(op, choice):
        return timed(timer, target.run)


def check(job: tuple[str, str, bool, Choice, float]) -> str | None:
    """Compile a choice and compare its results; return what is wrong with it."""
    op, case, dry, choice, allowed = job
    try:
        target = make_target(op, case, dry)
        with chosen(op, choice):
            found = distance(target.run(), target.expected)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    if not found <= allowed + 1e-6:
        return f"expected a distance of at most {allowed:.2g} from float32, got {found}"
    return None
