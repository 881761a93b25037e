"""Tables of what bench/decoding/step_time.py measured."""

from __future__ import annotations

from typing import Any

from bench.report.pages import table


def steps_table(steps: dict[str, dict[str, Any]]) -> str:
    names = list(next(iter(steps.values()))["median_ms"])
    rows = []
    for name in names:
        row = [name]
        for measured in steps.values():
            median = measured["median_ms"]
            row += [f"{median[name]:.1f}", f"{median[name] / median['transformers']:.2f}"]
        rows.append(row)
    header = ["step"] + [f"{dtype}, {what}" for dtype in steps for what in ("ms", "relative to transformers")]  # fmt: skip
    return table(header, rows)


def kinds_table(steps: dict[str, dict[str, Any]]) -> str:
    rows = [
        [f"{dtype}, {step}"] + [f"{value:.1f}" for value in kinds.values()]
        for dtype, measured in steps.items()
        for step, kinds in measured["milliseconds_by_kind"].items()
    ]
    kinds = next(iter(steps.values()))["milliseconds_by_kind"]["transformers"]
    return table(["step, ms", *kinds], rows)
