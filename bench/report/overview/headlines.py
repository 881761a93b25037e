"""The table of docs/results/index.md: a headline of each topic, and the command that reproduces it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.report.comparison import runs_of
from bench.report.gpu.page import RECORD
from bench.report.pages import table
from bench.report.sampling import speedup
from specdec.evaluate.method_names import PLAIN
from specdec.evaluate.runs import decode_speedup

Row = dict[str, Any]


def headlines_table(results: Path) -> str:
    """Return a row per topic; topics without a data file are not measured."""
    rows = [
        ["[CPU, whole texts](cpu.md)", cpu(results), "`make bench-decoding`*"],
        ["[CPU, sampled text](cpu.md#sampled-text)", sampled(results), "`make bench-decoding`*"],
        ["[CPU, batches](cpu.md#batches)", batches(results), "`make bench-decoding`*"],
        ["[Op times](ops.md)", ops(results), "`make bench`*"],
        ["[GPU checks and benchmarks](gpu.md)", gpu(results), "`make gpu`"],
        ["[Bytes, counted](counted.md#bytes)", moved(results), "`make bytes`"],
        ["[Launches, counted](counted.md#launches-and-host-reads)", launches(results), "`make launches`"],
        ["[Registers and spills](../kernels/registers.md)", "see the tables", "`make aot`"],
        ["[Training-free methods](training_free.md)", training_free(results), "`make training-free`*"],
        ["[Trained heads](trained.md)", trained(results), "`python -m bench.trained.one_budget`"],
        ["[Computed settings](../how/settings.md)", settings(results), "`python -m bench.replay.run`"],
        ["[Compatibility](counted.md#compatibility)", compat(results), "`make compat`"],
    ]  # fmt: skip
    return table(["topic", "headline", "reproduce"], rows)


def load(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def trained(results: Path) -> str:
    if not (result := load(results / "one_budget.json")):
        return "**not measured**"
    rows = [row["nodes"]["16"]["tokens_per_round"] for row in result["methods"].values()]
    return f"tokens per round at 16 nodes: {min(rows):.2f} to {max(rows):.2f}"


def cpu(results: Path) -> str:
    found = []
    for dtype in ("float32", "bfloat16"):
        if result := load(results / f"spec_bench_cpu_{dtype}.json"):
            row = result["summary"]["mixed"]
            speeds = row["speedup_vs_transformers"], row["speedup_vs_plain"]
            found.append(f"{dtype} {speeds[0]:.2f} and {speeds[1]:.2f}")
    if not found:
        return "not measured"
    return f"`mixed`, speed-up over transformers and over plain decoding: {', '.join(found)}"


def sampled(results: Path) -> str:
    return drawn(results, 1, ("T 0.7", "T 1.0"))


def batches(results: Path) -> str:
    return drawn(results, 8, ("greedy", "T 0.7"))


def drawn(results: Path, batch: int, settings: tuple[str, ...]) -> str:
    """Return the speed-ups of `mixed` over plain decoding in some settings."""
    result = load(results / "sampling_cpu.json")
    if result is None:
        return "not measured"
    found = [
        f"{row['setting']} {speedup(row, result):.2f}"
        for setting in settings
        for row in result["rows"]
        if (row["setting"], row["batch"], row["drafter"], row["coupled"])
        == (setting, batch, "mixed", True)
    ]
    rows = "" if batch == 1 else f" with {batch} rows"
    return f"`mixed`{rows}, bfloat16, speed-up over plain decoding: {', '.join(found)}"


def ops(results: Path) -> str:
    content = load(results / "ops_cpu.json")
    if content is None:
        return "not measured"
    ops = {row["extra_info"]["op"] for row in content["benchmarks"]}
    return f"{len(ops)} ops, eager and compiled reference on a CPU"


def gpu(results: Path) -> str:
    content = load(results / "gpu" / RECORD)
    return content["date"] if content and content["measured"] else "**not measured**"


def moved(results: Path) -> str:
    result = load(results / "bytes.json")
    if result is None:
        return "not counted"
    aimed = [row for row in result["rows"] if row["target"] is not None]
    met = sum(row["ratio"] <= row["target"] for row in aimed)
    largest = max(row["ratio"] for row in aimed)
    return f"{met} of {len(aimed)} targets met; at most {largest:.2f} times the minimum there"


def launches(results: Path) -> str:
    result = load(results / "launches.json")
    if result is None:
        return "not counted"
    reads = {
        sum(sum(counts["reads"].values()) for counts in run["stages"].values())
        for run in result["runs"]
    }
    least, most = min(reads), max(reads)
    return f"{least if least == most else f'{least} to {most}'} host read per round, all methods"


def training_free(results: Path) -> str:
    found = []
    for dtype in ("float32", "bfloat16"):
        if result := load(results / f"training_free_cpu_{dtype}.json"):
            ours, plain = (runs_of(result, method) for method in ("suffix+recycling", PLAIN))
            found.append(f"{dtype} {decode_speedup(ours, plain):.2f}")
    if not found:
        return "not measured"
    return f"`suffix+recycling`, speed-up over plain decoding: {', '.join(found)}"


def settings(results: Path) -> str:
    result = load(results / "replay.json")
    if result is None:
        return "not measured"
    met = sum(gate["met"] for gate in result["gates"])
    return f"{met} of {len(result['gates'])} aims met"


def compat(results: Path) -> str:
    environments: dict[str, Row] = load(results / "compat.json") or {}
    tests = [
        f"{name}: {entry['tests']['passed']} passed, {entry['tests']['failed']} failed"
        for name, entry in environments.items()
    ]
    return "; ".join(tests) or "not tested"
