"""The command `info`."""

from __future__ import annotations

import platform

from rich.table import Table

from .. import __version__
from ..sources.embedded import DEFAULT_MODEL
from .options import DType, ModelOption, RevisionOption, ThreadsOption, TrustOption
from .terminal import console


def info(
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    threads: ThreadsOption = None,
) -> None:
    """Say what is installed, what this machine can do, and what the model is."""
    import torch
    import transformers

    from ..load import load_target
    from ..model.cpu_linear import can_prepack
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
    packable = [d for d in (DType.float32, DType.bfloat16) if can_prepack(getattr(torch, d))]
    table.add_row("packed linears", ", ".join(packable) or "none")
    outline = load_outline(model, revision=revision, trust_remote_code=trust_remote_code)
    for precision in (DType.float32, DType.bfloat16):
        needs = Needs.of(outline, getattr(torch, precision))
        table.add_row(
            f"memory {precision}",
            f"weights {gigabytes(needs.weights)}, packed copies (CPU) {gigabytes(needs.prepacked)}, "
            f"1000 tokens of a row {gigabytes(1000 * needs.cache)}",
        )
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
    target = load_target(choice.weights())
    parameters = sum(p.numel() for p in target.model.parameters())
    table.add_row("model", f"{model}: {type(target.model).__name__}, {parameters / 1e6:.0f} M")
    table.add_row("positions", str(target.position_limit))
    console.print(table)
