"""Tables of bench/decoding/lean_layers.py."""

from __future__ import annotations

from typing import Any

from bench.report.pages import machine_line, table

Result = dict[str, Any]


def passes_table(result: Result) -> str:
    """Compare passes with transformers' layers and specdec's, for the default model and other shapes."""
    rows = []
    for dtype, measured in result["dtypes"].items():
        models = {"SmolLM2 135M": measured["passes"], **measured["shapes"]}
        for model, passes in models.items():
            for width, times in passes.items():
                library, lean = times["library"], times["auto"]
                what = "prefill of 300" if width == "prefill" else f"{width} nodes"
                rows.append([f"{dtype}, {model}, {what}", f"{library:.1f}", f"{lean:.1f}", f"{library - lean:.1f}", f"{lean / library:.2f}"])  # fmt: skip
    header = ["pass", "transformers layers, ms", "specdec layers, ms", "saved, ms", "ratio"]
    return f"{table(header, rows)}\n\n{machine_line(result['machine'])}"


def texts_table(result: Result) -> str:
    """Compare whole texts: tokens per second with both kinds of layers and of transformers' `generate`."""
    rows = []
    for dtype, measured in result["dtypes"].items():
        texts = measured["texts"]
        own = texts["transformers, library"]
        rows.append([f"{dtype}, transformers", f"{own:.1f}", "1.00", "-"])
        for method in ("plain", "mixed"):
            for kind, layers in (("library", "transformers layers"), ("auto", "specdec layers")):
                name = f"{method}, {kind}"
                same = f"{texts[f'identical {name}']} of {texts['prompts']}"
                rows.append([f"{dtype}, {method}, {layers}", f"{texts[name]:.1f}", f"{texts[name] / own:.2f}", same])  # fmt: skip
    return table(["method", "tokens/s", "speed-up over transformers", "identical texts"], rows)


def bound_table(result: Result) -> str:
    """Compare a plain step with the time to read the weights once."""
    rows = []
    for dtype, measured in result["dtypes"].items():
        step, least = measured["passes"]["1"]["auto"], measured["weights_milliseconds"]
        rows.append([dtype, f"{measured['gigabytes_per_second']:.1f}", f"{least:.1f}", f"{step:.1f}", f"{least / step:.0%}"])  # fmt: skip
    header = [
        "dtype",
        "read bandwidth, GB/s",
        "reading the weights once, ms",
        "plain step, ms",
        "share of the bound",
    ]
    return table(header, rows)
