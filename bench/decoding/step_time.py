"""Where the time of a step goes: the library's step, ours, and ours over trees of several widths.

    python -m bench.decoding.step_time --dtype bfloat16 --json bench/results/step_cpu_bfloat16.json

All kinds of steps take turns in one process; medians over `--rounds` are reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from specdec.evaluate.benchmark import describe_machine
from specdec.load import load_target
from specdec.model.cache import CACHE_NAME, Rows
from specdec.model.target import Target
from specdec.sampling import most_likely
from specdec.sources.models import load_model
from specdec.tree import TokenTree

PREFIX = 300
WIDTHS = (1, 2, 4, 8, 16, 32)
# Which operators a step's time belongs to; the rest are norms, rotations, activations and bookkeeping.
KINDS = {
    "linear layers": ("mkldnn::_linear_pointwise", "aten::linear"),
    "attention": ("aten::scaled_dot_product_attention",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)

    stock, _ = load_model(dtype=dtype)
    packed = load_target(dtype=dtype)
    targets = {"packed": packed, "unpacked": load_target(dtype=dtype, prepack=False)}
    targets["exact"] = load_target(dtype=dtype, exact=True)
    ids = torch.randint(0, 1000, (1, PREFIX), generator=torch.Generator().manual_seed(0))

    steps: dict[str, Callable[[], object]] = {"transformers": library_step(stock, ids)}
    for name, target in targets.items():
        for width in WIDTHS if name != "unpacked" else WIDTHS[:1]:
            steps[f"{name} {width}"] = tree_step(target, ids, width)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with torch.inference_mode():
        for _ in range(options.rounds):
            for name, step in steps.items():
                began = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - began)
        split = {name: time_by_kind(steps[name]) for name in ("transformers", "packed 1")}
    result = {
        "machine": describe_machine(packed, reference="-"),
        "prefix": PREFIX,
        "rounds": options.rounds,
        "median_ms": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "milliseconds_by_kind": split,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def library_step(model: torch.nn.Module, ids: torch.Tensor) -> Callable[[], object]:
    """One more token with the library's own cache, which is put back afterwards."""
    cache = DynamicCache()
    with torch.inference_mode():
        model(ids, **{CACHE_NAME: cache}, use_cache=True)

    def step() -> None:
        out = model(ids[:, :1], **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=1)
        out.logits[:, -1].float().argmax(-1)
        cache.crop(-1)

    return step


def tree_step(target: Target, ids: torch.Tensor, width: int) -> Callable[[], object]:
    """One verification of a chain of `width` nodes."""
    cache = target.new_cache(rows=1, capacity=PREFIX, tree_capacity=width)
    rows, tree = Rows.first(1, target.device), TokenTree.chain(ids[:, :width])
    with torch.inference_mode():
        target.prefill(ids, [PREFIX], cache)
    return lambda: most_likely(target.verify(tree, cache, rows).logits)


def time_by_kind(step: Callable[[], object], repeats: int = 20) -> dict[str, float]:
    """Split the operators' own time; what is left of the median is Python and dispatch."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(repeats):
            step()
    events = profiled.key_averages()
    totals = dict.fromkeys((*KINDS, "other operators"), 0.0)
    totals["other operators"] = sum(e.self_cpu_time_total for e in events) / repeats / 1e3
    for kind, names in KINDS.items():
        spent = sum(e.cpu_time_total for e in events if e.key in names) / repeats / 1e3
        totals[kind] = spent
        totals["other operators"] -= spent
    totals["number of operators"] = sum(e.count for e in events) / repeats
    return totals


if __name__ == "__main__":
    main()
