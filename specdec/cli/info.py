"""The command `info`."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from rich.table import Table

from .. import __version__
from ..sources.embedded import DEFAULT_MODEL
from .options import DType, ModelOption, RevisionOption, ThreadsOption, TrustOption
from .terminal import console
from .tune import costs_table

if TYPE_CHECKING:
    from ..model.target import Target


def info(
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    threads: ThreadsOption = None,
) -> None:
    """Show versions, devices, this machine's costs, and the model's memory and layers."""
    import torch
    import transformers

    from ..costs.measure import costs_of
    from ..drafters import PlainDrafter
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
    steps, costs = {}, []
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
        passes = costs_of(target, PlainDrafter())
        costs.append(passes)
        steps[precision] = passes.line.ms(1)
        table.add_row(f"layers {precision}", layers_of(target))
    slower, faster = sorted(steps, key=lambda precision: -steps[precision])
    gain = steps[slower] / steps[faster]
    times = ", ".join(f"{precision} {ms:.1f} ms" for precision, ms in steps.items())
    table.add_row("one token", f"{times}: {faster} is {gain:.2f}x as fast here")
    parameters = sum(p.numel() for p in target.model.parameters())
    table.add_row("model", f"{model}: {type(target.model).__name__}, {parameters / 1e6:.0f} M")
    table.add_row("positions", str(target.position_limit))
    console.print(table)
    for passes in costs:
        console.print(costs_table(passes))


def layers_of(target: Target) -> str:
    """Describe how the layers run, with a reason if some run as transformers' layers."""
    lean = target.lean
    assert lean is not None
    ours = [layer for layer in lean.layers if layer is not None]
    products = sum(layer.prepacked for layer in ours)
    said = f"{len(ours)} of {len(lean.layers)} in few operators, {products} of their products prepacked"
    reasons = {f"layer {at}: {reason}" for at, reason in enumerate(lean.reasons) if reason}
    return "; ".join([said, *sorted(reasons)[:1]])
