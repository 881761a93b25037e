"""Tables of bench/counted/launches.py."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

from bench.report.pages import table

Stages = dict[str, dict[str, Any]]


def launches_tables(result: dict[str, Any]) -> str:
    return "\n\n".join([_stages_table(result), _kernels_table(result), _facts(result)])


def _stages_table(result: dict[str, Any]) -> str:
    stages = list(result["runs"][0]["stages"])
    header = ["method", "beam width", *stages, "total", "host reads", "uploads"]
    rows = []
    for method, counted, widths in _alike(result):
        whole = _launches(counted.values())
        row = [method, _span(widths), *(_launches([counted[stage]]) for stage in stages), whole]
        rows.append([*row, _where(counted, "reads"), _where(counted, "uploads")])
    return table(header, rows)


def _kernels_table(result: dict[str, Any]) -> str:
    alike = list(_alike(result))
    per_method = []
    for _, counted, _ in alike:
        kernels: Counter[str] = Counter()
        for counts in counted.values():
            kernels.update(counts["kernels"])
        per_method.append(kernels)
    names = sorted(set().union(*per_method))
    header = ["kernel", *(" ".join(filter(None, (m, _span(w, "")))) for m, _, w in alike)]
    rows = [[f"`{name}`", *(str(kernels[name]) for kernels in per_method)] for name in names]
    return "Kernels per round:\n\n" + table(header, rows)


def _facts(result: dict[str, Any]) -> str:
    (plain,) = (run["stages"] for run in result["runs"] if run["method"] == "plain")
    deeper = result["one_layer_more"]["verify"]
    ours = sum(deeper["kernels"].values()) - sum(plain["verify"]["kernels"].values())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"Model of {result['layers']} layers; each further layer adds {ours} + {deeper['aten'] - plain['verify']['aten']} "
        f"to verify. {result['batch']} rows of different lengths; {result['gpu']}; {versions}."
    )


def _alike(result: dict[str, Any]) -> list[tuple[str, Stages, list[int | None]]]:
    """Group neighbouring beam widths with equal counts."""
    groups = groupby(result["runs"], key=lambda run: (run["method"], run["stages"]))
    return [(*key, [run["beam_width"] for run in runs]) for key, runs in groups]


def _span(widths: list[int | None], none: str = "-") -> str:
    first, last = widths[0], widths[-1]
    return none if first is None else f"{first}" if first == last else f"{first} to {last}"


def _launches(counts: Any) -> str:
    counts = list(counts)
    ours = sum(sum(each["kernels"].values()) for each in counts)
    return f"{ours} + {sum(each['aten'] for each in counts)}"


def _where(counted: Stages, what: str) -> str:
    found = {stage: sum(counts[what].values()) for stage, counts in counted.items()}
    return ", ".join(f"{count} ({stage})" for stage, count in found.items() if count) or "0"
