"""Tables of what bench/decoding/lean_layers.py measured."""

from __future__ import annotations

from typing import Any

from bench.report.pages import machine_line, table

Result = dict[str, Any]


def passes_table(result: Result) -> str:
    """Tell passes of the default model and of shapes of others: the library's layers, ours, the ratio."""
    rows = []
    for dtype, measured in result["dtypes"].items():
        models = {"SmolLM2 135M": measured["passes"], **measured["shapes"]}
        for model, passes in models.items():
            for width, times in passes.items():
                library, lean = times["library"], times["auto"]
                what = "prefill of 300" if width == "prefill" else f"{width} nodes"
                rows.append([f"{dtype}, {model}, {what}", f"{library:.1f}", f"{lean:.1f}", f"{library - lean:.1f}", f"{lean / library:.2f}"])  # fmt: skip
    header = ["pass", "library's layers, ms", "ours, ms", "saved, ms", "ratio"]
    return f"{table(header, rows)}\n\n{machine_line(result['machine'])}"


def texts_table(result: Result) -> str:
    """Tell whole texts: tokens per second of each method with both kinds of layers, beside the library's own."""
    rows = []
    for dtype, measured in result["dtypes"].items():
        texts = measured["texts"]
        own = texts["transformers, library"]
        rows.append([f"{dtype}, transformers", f"{own:.1f}", "1.00", "-"])
        for method in ("plain", "mixed"):
            for kind, layers in (("library", "the library's layers"), ("auto", "ours")):
                name = f"{method}, {kind}"
                same = f"{texts[f'identical {name}']} of {texts['prompts']}"
                rows.append([f"{dtype}, {method}, {layers}", f"{texts[name]:.1f}", f"{texts[name] / own:.2f}", same])  # fmt: skip
    return table(["method", "tokens/s", "x transformers", "texts as transformers'"], rows)


def bound_table(result: Result) -> str:
    """Tell how far a plain step is from reading the weights once."""
    rows = []
    for dtype, measured in result["dtypes"].items():
        step, least = measured["passes"]["1"]["auto"], measured["weights_milliseconds"]
        rows.append([dtype, f"{measured['gigabytes_per_second']:.1f}", f"{least:.1f}", f"{step:.1f}", f"{least / step:.0%}"])  # fmt: skip
    header = [
        "dtype",
        "read bandwidth, GB/s",
        "weights once, ms",
        "a plain step, ms",
        "of the bound",
    ]
    return table(header, rows)
