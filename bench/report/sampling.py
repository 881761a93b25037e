"""Tables of bench/decoding/sampling.py and bench/decoding/sampling_equality.py."""

from __future__ import annotations

from typing import Any

from bench.report.pages import machine_line, number, table

Row = dict[str, Any]
Result = dict[str, Any]
PLAIN = "plain"


def speed_table(result: Result) -> str:
    """Compare single rows with plain decoding in the same setting."""
    header = ["setting, drafter", "tokens/s", "speed-up over plain", "tokens/round", "nodes/round", "draft, ms", "verify, ms", "other, ms", "other"]  # fmt: skip
    rows = [row for row in result["rows"] if row["batch"] == 1 and row["coupled"]]
    lines = [[f"{row['setting']}, {row['drafter']}", *figures(row, result)] for row in rows]
    return f"{table(header, lines)}\n\n{machine_of(result)}"


def figures(row: Row, result: Result) -> list[str]:
    """Return the cells of a row."""
    stages = row["stage_seconds"]
    decode = sum(seconds for stage, seconds in stages.items() if stage != "prefill")
    draft, verify = stages["draft"], stages["verify"]
    others = decode - draft - verify
    per_round = [number(1e3 * s / row["rounds"]) for s in (draft, verify, others)]
    speed = [f"{row['tokens_per_second']:.1f}", number(speedup(row, result))]
    shape = [number(row["tokens_per_round"]), number(row["nodes_per_round"])]
    return [*speed, *shape, *per_round, f"{others / decode:.1%}"]


def batches_table(result: Result) -> str:
    """Compare batches with plain decoding of the same batch."""
    header = [
        "batch, setting, drafter",
        "tokens/s",
        "speed-up over plain",
        "tokens/round",
        "nodes/round",
    ]
    rows = [row for row in result["rows"] if row["batch"] > 1]
    lines = [
        [f"{row['batch']}, {row['setting']}, {row['drafter']}", *figures(row, result)[:4]]
        for row in rows
    ]
    return table(header, lines)


def coupled_table(result: Result) -> str:
    """Compare ranking with the target's noise with ranking by the drafter's probabilities."""
    header = ["setting, drafter", "tokens/round, ranked by log q", "tokens/round, ranked with the noise", "gain", "speed-up over plain, by log q", "speed-up over plain, with the noise"]  # fmt: skip
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
    """Find the row measured with the default ranking."""
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
    """Count the texts that equal plain decoding's."""
    header = ["setting, drafter", "identical texts", "tokens", "first difference after token"]
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
