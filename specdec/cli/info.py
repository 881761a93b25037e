"""The command `info`."""

from __future__ import annotations

import platform
import statistics
import time
from typing import TYPE_CHECKING

from rich.table import Table

from .. import __version__
from ..sources.embedded import DEFAULT_MODEL
from .options import DType, ModelOption, RevisionOption, ThreadsOption, TrustOption
from .terminal import console

if TYPE_CHECKING:
    from ..model.target import Target


def info(
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    threads: ThreadsOption = None,
) -> None:
    """Say what is installed, what this machine can do, and what the model is."""
    import torch
    import transformers

    from ..host.processor import processor
    from ..load import load_target
    from ..model.memory import Needs, gigabytes
    from ..sources.models import load_outline
    from .loading import ModelChoice

    choice = ModelChoice.of(
        model, revision, trust_remote_code, dtype=DType.float32, threads=threads
    )
    table = Table(show_header=False)
    table.add_row("specdec", __version__)
    table.add_row("python", platform.python_version())
    table.add_row("torch", torch.__version__)
    table.add_row("transformers", transformers.__version__)
    devices = ["cpu"]
    devices += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    table.add_row("devices", ", ".join(devices))
    table.add_row("threads", str(torch.get_num_threads()))
    table.add_row("processor", f"{processor()}, {torch.backends.cpu.get_cpu_capability()}")
    outline = load_outline(model, revision=revision, trust_remote_code=trust_remote_code)
    for precision in (DType.float32, DType.bfloat16):
        needs = Needs.of(outline, getattr(torch, precision))
        table.add_row(
            f"memory {precision}",
            f"weights {gigabytes(needs.weights)}, packed copies (CPU) {gigabytes(needs.prepacked)}, "
            f"1000 tokens of a row {gigabytes(1000 * needs.cache)}",
        )
    steps = {}
    for precision in (DType.float32, DType.bfloat16):
        weights = choice._replace(dtype=getattr(torch, precision)).weights()
        possible = "yes"
        try:
            load_target(weights, exact=True, prepack=True)
        except ValueError as error:
            if not str(error).startswith("exact"):
                raise
            possible = "no"
        table.add_row(f"exact {precision}", possible)
        target = load_target(weights, prepack=True)
        steps[precision] = step_milliseconds(target)
        table.add_row(f"layers {precision}", layers_of(target))
    slower, faster = sorted(steps, key=lambda precision: -steps[precision])
    gain = steps[slower] / steps[faster]
    times = ", ".join(f"{precision} {ms:.1f} ms" for precision, ms in steps.items())
    table.add_row("a step", f"{times}: {faster} is {gain:.2f}x as fast here")
    parameters = sum(p.numel() for p in target.model.parameters())
    table.add_row("model", f"{model}: {type(target.model).__name__}, {parameters / 1e6:.0f} M")
    table.add_row("positions", str(target.position_limit))
    console.print(table)


def layers_of(target: Target) -> str:
    """Say how the layers run, and why some are the library's."""
    lean = target.lean
    assert lean is not None
    ours = [layer for layer in lean.layers if layer is not None]
    products = sum(layer.prepacked for layer in ours)
    said = f"{len(ours)} of {len(lean.layers)} in few operators, {products} of their products prepacked"
    reasons = {f"layer {at}: {reason}" for at, reason in enumerate(lean.reasons) if reason}
    return "; ".join([said, *sorted(reasons)[:1]])


def step_milliseconds(target: Target) -> float:
    """Time a plain step behind 64 tokens; the median of nine."""
    import torch

    from ..model.cache import Rows
    from ..tree import TokenTree

    length = min(64, target.position_limit - 2)
    rows, chain = Rows.first(1, target.device), TokenTree.chain(torch.tensor([[1]]))
    times = []
    with torch.inference_mode():
        cache = target.new_cache(rows=1, capacity=length, tree_capacity=1)
        target.prefill(torch.ones(1, length, dtype=torch.int64), [length], cache)
        for _ in range(9):
            began = time.perf_counter()
            target.verify(chain, cache, rows)
            times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)
