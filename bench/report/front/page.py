"""The README: its table of results, and the recording."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bench.recording.draw import draw_recording
from bench.report.comparison import Result
from bench.report.pages import DOCS, README, fill, machine_line, number, table
from specdec.evaluate.method_names import PLAIN, TRANSFORMERS

CLASSES = {"AVX512": "AVX-512", "AVX2": "AVX2"}
HEADER = ["CPU", "dtype", "drafter", "transformers, tokens/s", "loop and packing", "x drafting", "= speed-up", "specdec, tokens/s", "identical texts"]  # fmt: skip
LIBRARY_LOOKUP = "transformers-lookup"
NAMES = {"mixed": "ReDrafter and `lookup`", "lookup": "`lookup`, no training"}


def front_page(results: Path) -> None:
    """Fill the README's table, and draw the recording where there is one."""
    fill(README, {"results": results_table(results)})
    recorded = results / "recording.json"
    if recorded.exists():
        recording = json.loads(recorded.read_text(encoding="utf-8"))
        draw_recording(recording, DOCS / "pictures" / "terminal.svg")


def results_table(results: Path) -> str:
    """Make five rows: three of the machine that wrote the main files, two of a CPU of another class.

    Every ratio is of one file, so of one machine. The other class is read from `spec_bench_cpu_DTYPE_CLASS.json`, CLASS
    in small letters; a class without a file is not measured.
    """
    main = {dtype: load(results, dtype) for dtype in ("float32", "bfloat16")}
    there = [result for result in main.values() if result]
    other = "AVX512" if there and class_of(there[0]) == "AVX2" else "AVX2"
    rows = [row(main[dtype], dtype, method, "AVX512") for dtype, method in (("float32", "mixed"), ("float32", "lookup"), ("bfloat16", "mixed"))]  # fmt: skip
    second = {dtype: load(results, f"{dtype}_{other.lower()}") for dtype in main}
    rows += [row(result, dtype, "mixed", other) for dtype, result in second.items()]
    measured = [*there, *filter(None, second.values())]
    lookups = [
        f"{number(result['summary'][LIBRARY_LOOKUP]['speedup_vs_transformers'])} ({result['machine']['dtype']})"
        for result in measured
        if LIBRARY_LOOKUP in result["summary"]
    ]
    notes = list(dict.fromkeys(machine_line(result["machine"]) for result in measured))
    if lookups:
        notes.insert(0, f"Speed-up of transformers' own prompt lookup on the same questions: {', '.join(lookups)}.")  # fmt: skip
    return "\n\n".join([table(HEADER, rows), "\n".join(notes)])


def row(result: Result | None, dtype: str, method: str, missing: str) -> list[str]:
    """Write one row; without a result, of the class that is missing."""
    if result is None or method not in result["summary"]:
        return [CLASSES[missing], dtype, NAMES[method], "not measured", *["-"] * 5]
    summary: dict[str, dict[str, Any]] = result["summary"]
    drafting = summary[method]
    return [
        label(result),
        dtype,
        NAMES[method],
        f"{summary[TRANSFORMERS]['tokens_per_second']:.1f}",
        number(summary[PLAIN]["speedup_vs_transformers"]),
        number(drafting["speedup_vs_plain"]),
        number(drafting["speedup_vs_transformers"]),
        f"{drafting['tokens_per_second']:.1f}",
        f"{drafting['identical']} of {drafting['answers']}",
    ]


def load(results: Path, which: str) -> Result | None:
    path = results / f"spec_bench_cpu_{which}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def class_of(result: Result) -> str:
    """Return the class of the CPU as torch names it; empty where it was not recorded."""
    found = re.search(r",\s*(\w+)\)$", result["machine"]["device"])
    return found[1] if found else ""


def label(result: Result) -> str:
    name = result["machine"]["device"].removeprefix("cpu (").removesuffix(")").split(",")[0]
    kind = class_of(result)
    return f"{name}, {CLASSES.get(kind, kind) or 'class not recorded'}"
