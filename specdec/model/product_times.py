"""Which products a machine computes faster with prepacked weights: measured once, and kept on disk.

It depends on the processor, its instructions, how many threads share its memory, and torch. It is decided per shape of
a weight, never per number of rows: a node's result must not depend on how many are verified beside it.
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
# Of passes: a plain step, and trees.
ROWS = (1, 8)
# Smaller weights are prepacked unasked: what is gained or lost with them is little.
MIN_BYTES = 1 << 19
# So many different weights take turns that no near cache holds them; of larger ones so many rows stand for all.
TURNS_BYTES = 24 << 20
REPEATS = 3
# Copies are made unless the weights as they are take clearly less time: a busy machine measures badly.
CLEARLY = 0.9


def is_faster_prepacked(shape: Shape, dtype: torch.dtype) -> bool:
    """Tell whether to make a copy of a `[out, in]` weight in oneDNN's layout.

    Args:
        shape: of the weight.
        dtype: of the weight.

    Returns:
        False where passes of 1 and 8 rows, one each, take clearly less time without, and where torch has no such
        operators.
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
        with suppress(OSError):  # measured anew next time
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file) as scratch:
                scratch.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    plain, prepacked = known[name]
    return plain > CLEARLY * prepacked


def times_file(dtype: torch.dtype) -> Path:
    """Name the file of a machine, its threads, torch and a dtype."""
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
    """Read milliseconds, plain and prepacked, per shape; what is damaged counts as unknown."""
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
    """Time a shape: least milliseconds of products with plain and with prepacked weights, summed over `ROWS`."""
    size = shape[1] * dtype.itemsize
    rows = min(shape[0], max(1, TURNS_BYTES // size))
    generator = torch.Generator().manual_seed(0)  # one of its own: a caller's goes on as it was

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
