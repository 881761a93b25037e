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
HEADER = ["CPU", "dtype", "drafter", "transformers, tokens/s", "specdec, tokens/s", "loop and packing", "× drafting", "= speed-up", "tokens per round", "same text"]  # fmt: skip
LIBRARY_LOOKUP = "transformers-lookup"
UNTRAINED = "suffix+recycling"
NAMES = {"mixed": "`redrafter+lookup`", UNTRAINED: f"`{UNTRAINED}`"}
ROWS = (
    ("float32", "mixed"),
    ("float32", UNTRAINED),
    ("bfloat16", "mixed"),
    ("bfloat16", UNTRAINED),
)


def front_page(results: Path) -> None:
    """Fill the README's table, and draw the recording where there is one."""
    fill(README, {"results": results_table(results)})
    recorded = results / "recording.json"
    if recorded.exists():
        recording = json.loads(recorded.read_text(encoding="utf-8"))
        draw_recording(recording, DOCS / "pictures" / "terminal.svg")


def results_table(results: Path) -> str:
    """Make five rows: four of the machine that wrote the main files, one of a CPU of another class.

    Every ratio is of one file, so of one machine. The other class is read from `spec_bench_cpu_DTYPE_CLASS.json`, CLASS
    in small letters; a class without a file is not measured.
    """
    main = {dtype: load(results, dtype) for dtype in ("float32", "bfloat16")}
    there = [result for result in main.values() if result]
    other = "AVX512" if there and class_of(there[0]) == "AVX2" else "AVX2"
    rows = [row(main[dtype], dtype, method, "AVX512") for dtype, method in ROWS]
    second = load(results, f"float32_{other.lower()}")
    rows.append(row(second, "float32", "mixed", other))
    measured = [*there, second] if second else there
    lookups = [library_lookup(result) for result in measured if LIBRARY_LOOKUP in result["summary"]]
    notes = list(dict.fromkeys(machine_line(result["machine"]) for result in measured))
    if lookups:
        notes.insert(0, f"Speed-up of transformers' own prompt lookup on the same questions: {', '.join(lookups)}.")  # fmt: skip
    return "\n\n".join([table(HEADER, rows), "\n".join(notes)])


def library_lookup(result: Result) -> str:
    """Return the speed-up of transformers' prompt lookup, with its dtype and CPU class."""
    speedup = number(result["summary"][LIBRARY_LOOKUP]["speedup_vs_transformers"])
    kind = class_of(result)
    where = [result["machine"]["dtype"], *([CLASSES[kind]] if kind else [])]
    return f"{speedup} ({', '.join(where)})"


def row(result: Result | None, dtype: str, method: str, missing: str) -> list[str]:
    """Write one row; without a result, of the class that is missing."""
    if result is None or method not in result["summary"]:
        return [CLASSES[missing], dtype, NAMES[method], "not measured", *["-"] * 6]
    summary: dict[str, dict[str, Any]] = result["summary"]
    drafting = summary[method]
    return [
        label(result),
        dtype,
        NAMES[method],
        f"{summary[TRANSFORMERS]['tokens_per_second']:.1f}",
        f"{drafting['tokens_per_second']:.1f}",
        number(summary[PLAIN]["speedup_vs_transformers"]),
        number(drafting["speedup_vs_plain"]),
        number(drafting["speedup_vs_transformers"]),
        number(drafting["tokens_per_round"]),
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
