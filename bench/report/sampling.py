"""Tables of bench/decoding/sampling.py and bench/decoding/sampling_equality.py."""

from __future__ import annotations

from typing import Any

from bench.report.pages import machine_line, number, table

Row = dict[str, Any]
Result = dict[str, Any]
PLAIN = "plain"


def speed_table(result: Result) -> str:
    """Tell single rows, each setting against the same one without a drafter."""
    header = ["setting, drafter", "tokens/s", "x no drafter", "tokens/round", "nodes/round", "ms draft", "ms verify", "ms others", "others"]  # fmt: skip
    rows = [row for row in result["rows"] if row["batch"] == 1 and row["coupled"]]
    lines = [[f"{row['setting']}, {row['drafter']}", *figures(row, result)] for row in rows]
    return f"{table(header, lines)}\n\n{machine_of(result)}"


def figures(row: Row, result: Result) -> list[str]:
    """Write what a table tells of a row."""
    stages = row["stage_seconds"]
    decode = sum(seconds for stage, seconds in stages.items() if stage != "prefill")
    draft, verify = stages["draft"], stages["verify"]
    others = decode - draft - verify
    per_round = [number(1e3 * s / row["rounds"]) for s in (draft, verify, others)]
    speed = [f"{row['tokens_per_second']:.1f}", number(speedup(row, result))]
    shape = [number(row["tokens_per_round"]), number(row["nodes_per_round"])]
    return [*speed, *shape, *per_round, f"{others / decode:.1%}"]


def batches_table(result: Result) -> str:
    """Tell batches, each against the same one without a drafter."""
    header = ["batch, setting, drafter", "tokens/s", "x no drafter", "tokens/round", "nodes/round"]
    rows = [row for row in result["rows"] if row["batch"] > 1]
    lines = [
        [f"{row['batch']}, {row['setting']}, {row['drafter']}", *figures(row, result)[:4]]
        for row in rows
    ]
    return f"{table(header, lines)}\n\n{machine_of(result)}"


def coupled_table(result: Result) -> str:
    """Tell what ranking with the target's noise brings over ranking by the drafter's probabilities."""
    header = ["setting, drafter", "tokens/round by log q", "with the noise", "gain", "x no drafter by log q", "with the noise"]  # fmt: skip
    lines = []
    for row in result["rows"]:
        if row["coupled"]:
            continue
        other = find(result, row["setting"], row["batch"], row["drafter"])
        before, after = (r["tokens_per_round"] for r in (row, other))
        cells = [f"{row['setting']}, {row['drafter']}", number(before), number(after)]
        cells += [f"{after / before - 1:+.1%}"]
        lines.append([*cells, *(number(speedup(r, result)) for r in (row, other))])
    return f"{table(header, lines)}\n\n{machine_of(result)}"


def find(result: Result, setting: str, batch: int, drafter: str) -> Row:
    """Find what was measured as the library ships it."""
    return next(
        row
        for row in result["rows"]
        if (row["setting"], row["batch"], row["drafter"]) == (setting, batch, drafter)
        and row["coupled"]
    )


def speedup(row: Row, result: Result) -> float:
    """Divide a row's speed, prefill included, by that of the loop without a drafter."""
    plain = find(result, row["setting"], row["batch"], PLAIN)
    speed: float = row["tokens_per_second"] / plain["tokens_per_second"]
    return speed


def equality_table(result: Result) -> str:
    """Tell how many texts are those of the loop without a drafter."""
    header = ["setting, drafter", "same text", "tokens", "texts part after"]
    groups: dict[str, list[Row]] = {}
    for text in result["texts"]:
        groups.setdefault(f"{text['setting']}, {text['drafter']}", []).append(text)
    lines = []
    for name, texts in groups.items():
        parted = [str(t["parts"]) for t in texts if t["parts"] is not None]
        same = f"{len(texts) - len(parted)} of {len(texts)}"
        lines.append([name, same, str(sum(t["tokens"] for t in texts)), ", ".join(parted) or "-"])
    return f"{table(header, lines)}\n\n{machine_of(result)}"


def machine_of(result: Result) -> str:
    machine = result["machine"]
    return f"{machine['dtype']}, {result['new_tokens']} new tokens; {machine_line(machine)}"
