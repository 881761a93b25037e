"""Decides which matrix products are faster with prepacked weights on this machine: measured once, and kept on disk.

The result depends on the processor, its instructions, the number of threads, and torch. It is decided per shape of a
weight, never per number of rows, as a node's result must not depend on the number of nodes in the pass.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from specdec_kernels.decoder_layer import LinearWeights, PlainProduct, PrepackedProduct, can_prepack
from specdec_kernels.decoder_layer.products import Product

from ..host.json_files import read_json
from ..host.processor import processor
from ..host.whole_file import whole_file
from ..sources.embedded_files import cache_folder

Shape = tuple[int, int]
# Rows of the timed products: a plain step, and a tree.
ROWS = (1, 8)
# Weights below this many bytes are prepacked without measuring; the difference is small.
MIN_BYTES = 1 << 19
# Bytes of different weights that are timed in turn, so that no near cache holds them; of larger weights, a part of the rows.
TURNS_BYTES = 24 << 20
REPEATS = 3
# Weights are prepacked unless plain ones take less than this share of the time: times on a busy machine are noisy.
CLEARLY = 0.9


def is_faster_prepacked(shape: Shape, dtype: torch.dtype) -> bool:
    """Return whether to copy a weight of shape `[out, in]` into oneDNN's layout.

    Args:
        shape: of the weight.
        dtype: of the weight.

    Returns:
        False if products of 1 and 8 rows together take clearly less time without the copy, or torch lacks the operators.
    """
    return can_prepack(dtype) and _is_faster(shape, dtype, torch.get_num_threads())


@cache
def _is_faster(shape: Shape, dtype: torch.dtype, threads: int) -> bool:
    if shape[0] * shape[1] * dtype.itemsize < MIN_BYTES:
        return True
    file, name = times_file(dtype), "{}x{}".format(*shape)
    known = read_times(file)
    if name not in known:
        known[name] = measure(shape, dtype)
        with suppress(OSError):  # then the next run measures again
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file) as scratch:
                scratch.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    plain, prepacked = known[name]
    return plain > CLEARLY * prepacked


def times_file(dtype: torch.dtype) -> Path:
    """Return the path of the times for this machine, its threads, torch and a dtype."""
    parts = (
        processor(),
        torch.backends.cpu.get_cpu_capability(),
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
        str(dtype).removeprefix("torch."),
    )
    name = "".join(x if x.isalnum() or x in ".+" else "-" for x in "_".join(parts))
    return cache_folder() / "products" / f"{name}.json"


def read_times(file: Path) -> dict[str, list[float]]:
    """Read milliseconds, plain and prepacked, per shape; damaged entries count as unknown."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return {
        name: times
        for name, times in found.items()
        if isinstance(times, list) and len(times) == 2 and all(type(t) is float for t in times)
    }


@torch.inference_mode()
def measure(shape: Shape, dtype: torch.dtype) -> list[float]:
    """Time a shape: least milliseconds with plain and with prepacked weights, summed over `ROWS`."""
    size = shape[1] * dtype.itemsize
    rows = min(shape[0], max(1, TURNS_BYTES // size))
    generator = torch.Generator().manual_seed(0)  # does not change the caller's generator

    def numbers(count: int) -> Tensor:
        return torch.rand(count, shape[1], generator=generator).to(dtype)

    weights = [numbers(rows) for _ in range(min(64, max(1, TURNS_BYTES // (rows * size))))]
    xs = [numbers(count) for count in ROWS]
    kinds: list[Callable[[LinearWeights], Product]] = [PlainProduct, PrepackedProduct]
    products = [[kind(LinearWeights((weight,))) for weight in weights] for kind in kinds]
    times = [[[_time(of, x) for x in xs] for of in products] for _ in range(REPEATS)]
    return [sum(min(t[kind][at] for t in times) for at in range(len(xs))) for kind in (0, 1)]


def _time(products: list[Product], x: Tensor) -> float:
    began = time.perf_counter()
    for product in products:
        product(x)
    return (time.perf_counter() - began) / len(products) * 1e3
