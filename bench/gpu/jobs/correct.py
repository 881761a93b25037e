"""Part one: is every kernel right on this GPU, with the shapes that real models have?

Each case has a gate of its own: results against the reference, launches repeated, a graph replayed. Whoever compares
speeds asks the gate of the same case.

    python -m bench.gpu.jobs.correct OP …        # only launch the small cases, for a tool that watches
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from bench.gpu.jobs.accuracy import assert_right
from bench.gpu.run import Job, Row, Run, told
from bench.ops.cases import OPS, Call, cases_of, take_apart, uneven_cases
from specdec_kernels.testing.case import Case
from specdec_kernels.testing.poison import poisoned_empty

LAUNCHES, LAUNCHES_DRY = 20, 2
REPLAYS = 3
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def jobs(run: Run) -> list[Job]:
    """Take the cases of the group: all ops, one, or every n-th case of one, as in `lm_head 0/2`."""
    op, _, share = run.group.partition(" ")
    first, step = (int(number) for number in (share or "0/1").split("/"))
    chosen = [(op, case) for op in (OPS if op == "all" else [op]) for case in of_op(op, run)]
    return [
        Job(f"{op} {case.name}", partial(check, op, case, run)) for op, case in chosen[first::step]
    ]


def of_op(op: str, run: Run) -> list[Case]:
    small = cases_of(op, dry=True)
    if run.first and not run.dry:
        real = cases_of(op, dry=False)
        return [*small, next((case for case in real if "smollm2" in case.name), real[-1])]
    uneven = uneven_cases(run.dry) if op == "tree_attention" else []
    return [*uneven, *cases_of(op, run.dry, grid=True)]


@torch.inference_mode()
def check(op: str, case: Case, run: Run) -> Iterator[Row]:
    """Try one case in each way; what one finds does not keep the others from being tried."""
    call = take_apart(op, case, run.device)
    if call is None:
        yield {"op": op, "ok": None, "why": "calls launchers of its own"}
        return
    again = call.repeatable()
    first = [x.clone() for x in again()]
    gates: dict[str, Callable[[], None]] = {
        "reference": lambda: assert_right(call, again),
        "repeats": lambda: assert_repeats(again, first, LAUNCHES_DRY if run.dry else LAUNCHES),
    }
    if not run.dry:
        gates["graph"] = lambda: assert_replays(again, first)
    found: dict[str, bool | None] = {}
    why: dict[str, str] = {}
    for name, gate in gates.items():
        try:
            gate()
            found[name] = True
        except torch.OutOfMemoryError as error:  # says nothing of the kernel
            found[name], why[name] = None, told(error)["error"]
        except Exception as error:
            found[name], why[name] = False, told(error)["error"]
    ok = False if False in found.values() else None if None in found.values() else True
    yield {"op": op, "ok": ok, "gates": found, **({"why": why} if why else {})}


def assert_repeats(again: Callable[[], list[Tensor]], first: list[Tensor], launches: int) -> None:
    """Launch again and again: a result that changes by a bit is a race, or a read of memory that nobody wrote.

    Every other launch gets outputs and workspaces full of NaN, so that what is left over from the launch before cannot
    pass for a result.
    """
    differing = torch.zeros((), dtype=torch.int64, device=first[0].device)
    for launch in range(launches):
        with nullcontext() if launch % 2 else poisoned_empty():
            differing += ~same(again(), first)
    assert not int(differing), f"{int(differing)} of {launches} launches gave other results"


def assert_replays(again: Callable[[], list[Tensor]], first: list[Tensor]) -> None:
    """Capture the call in a graph, and compare what its replays write."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = again()
    for _ in range(REPLAYS):
        graph.replay()
        assert bool(same(found, first)), "a replayed graph gave other results"


def same(found: list[Tensor], first: list[Tensor]) -> Tensor:
    pairs = zip(found, first, strict=True)
    return torch.stack([(bits(x) == bits(y)).all() for x, y in pairs]).all()


def bits(x: Tensor) -> Tensor:
    """Look at numbers as words, among which NaN equals itself."""
    return x.contiguous().view(WORDS[x.itemsize])


def launch_small(ops: list[str]) -> None:
    for op in ops:
        for case in cases_of(op, dry=True):
            call: Call | None = take_apart(op, case, "cuda")
            if call is not None:
                call.run()
    torch.cuda.synchronize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Launch the small cases; nothing is written.")
    parser.add_argument("ops", nargs="*", metavar="OP")
    launch_small(parser.parse_args().ops)
