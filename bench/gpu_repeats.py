"""Launch every case of an op again and again: a result that changes by a bit is a race or a read of nothing's.

    python bench/gpu_repeats.py --op lm_head --results FOLDER

Every other launch gets outputs and workspaces full of NaN, so that what is left over from the launch before cannot pass
for a result. What an op writes in place is restored before each launch.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

import torch
from gpu_cases import OPS, cases_of, take_apart
from gpu_run import results_of, run_options
from torch import Tensor

from specdec_kernels.testing.poison import poisoned_empty

LAUNCHES, LAUNCHES_DRY = 200, 4
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", choices=OPS, nargs="+", default=OPS)
    parser.add_argument("--small", action="store_true", help="Few launches of small cases.")
    options = run_options(parser)
    run = options.run
    few = run.dry or options.small
    part = f"{'small' if options.small else 'repeats'}_{'_'.join(options.op)}"
    with results_of(run, part) as results:
        for op in options.op:
            for case in cases_of(op, few):
                if run.late:
                    return
                launches = LAUNCHES_DRY if few else LAUNCHES
                try:
                    row = repeat(op, case, run.device, launches)
                except Exception as error:  # a case that fails hides no other
                    row = {"error": f"{type(error).__name__}: {error}"}
                results.add(op=op, case=case.name, **row)


def repeat(op: str, case: Any, device: str, launches: int) -> dict[str, Any]:
    """Count the launches whose results differ from the first one's."""
    call = take_apart(op, case, device)
    if call is None:
        return {"skipped": "calls launchers of its own"}
    again = call.repeatable()
    first: list[Tensor] = []
    differing = torch.zeros((), dtype=torch.int64, device=device)
    for i in range(launches):
        with poisoned_empty() if i % 2 else nullcontext():
            found = [bits(x) for x in again()]
        if i == 0:
            first = [x.clone() for x in found]
        else:
            same = torch.stack([(x == y).all() for x, y in zip(found, first, strict=True)]).all()
            differing += ~same
    return {"launches": launches, "differing": int(differing)}


def bits(x: Tensor) -> Tensor:
    """Look at numbers as words, among which NaN equals itself."""
    return x.contiguous().view(WORDS[x.itemsize])


if __name__ == "__main__":
    main()
