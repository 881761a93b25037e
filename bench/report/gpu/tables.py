"""The tables of a GPU run's parts, from their rows; texts.py has those of whole texts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bench.report.gpu.figures import gates_of, limits_of, rows_of, timed_rows
from bench.report.gpu.targets import TARGETS, judge
from bench.report.pages import number, table

NOT_MEASURED = "**Not measured.**"

Row = dict[str, Any]


def correct(content: Row, part: str = "correct") -> str:
    """Tell per op how many cases are right, which are not, and how many were not begun or could not be told."""
    gates = gates_of(content, part)
    why = {row["case"]: row.get("why", {}) for row in rows_of(content, part)}
    rows = []
    for op in sorted({case.partition(" ")[0] for case in gates}):
        own = {case: ok for case, ok in gates.items() if case.partition(" ")[0] == op}
        count = Counter(own.values())
        failed = [f"{case.partition(' ')[2]} ({reasons(why.get(case))})" for case, ok in own.items() if ok is False]  # fmt: skip
        rows.append([op, str(count[True]), str(count[False]), str(count[None]), "; ".join(failed)])
    return table(["op", "right", "wrong", "unknown", "which are wrong"], rows)


def reasons(why: Any) -> str:
    return ", ".join(f"{gate}: {text[:90]}" for gate, text in why.items()) if why else "see below"


def rounds(content: Row) -> str:
    """Tell what a pass takes from the host and from a graph, and what rounds take by tokens a round."""
    found = rows_of(content, "rounds")
    passes = {row["case"]: row for row in found if row.get("kind") == "verify"}
    header = [
        "verify",
        "prefix",
        "host launches, ms",
        "host waits, ms",
        "graph, ms",
        "graph's bits",
    ]
    lines = [
        [
            f"{row['model']}, N {row['nodes']}, B {row['batch']}",
            str(row["prefix"]),
            *(number(row[f"{name}_milliseconds"]) for name in ("launch", "eager")),
            number(row.get("graph_milliseconds")),
            {True: "the same", False: "others", None: "-"}[row.get("same")],
        ]
        for row in passes.values()
    ]
    told = [table(header, lines)] if lines else []
    texts = [row for row in found if row.get("kind") == "texts"]
    if texts:
        told.append(table(
            ["texts", "tokens/round", "text", "round, ms", "device, ms", "launches", "x plain", "host, by stage",
             "device, by stage"],
            [round_line(row, texts) for row in texts],
        ))  # fmt: skip
    return "\n\n".join(told)


def round_line(row: Row, texts: list[Row]) -> list[str]:
    plain = next(
        (t for t in texts if t["method"] == "plain" and (t["model"], t["batch"]) == (row["model"], row["batch"])),
        None,
    )  # fmt: skip
    speed = row["tokens_per_round"] / row["round_milliseconds"]
    return [
        f"{row['model']}, B {row['batch']}, {row['method']}",
        number(row["tokens_per_round"]),
        "plain's" if row["identical"] else "**another**",
        number(row["round_milliseconds"]),
        number(sum(row["device_stages"].values()) * 1e3),
        f"{row['launches_per_round']:.0f}",
        number(plain and speed * plain["round_milliseconds"] / plain["tokens_per_round"]),
        shares(row["host_stages"]),
        shares(row["device_stages"]),
    ]


def targets(content: Row) -> str:
    """Tell which of the targets are met, each by its worst case."""
    timed = timed_rows(content)
    if not timed:
        return NOT_MEASURED
    rows = []
    for target in TARGETS:
        found = judge(target, timed)
        worst = "-"
        if found.worst:
            worst = f"{found.worst[0]:.3g}{target.unit} ({found.worst[1]})"
        bound = f"{'≥' if target.least else '≤'} {target.bound:g}{target.unit}"
        cases = f"{found.measured} of {found.cases}"
        rows.append([f"{', '.join(target.ops)}, {target.name}", bound, cases, worst, found.result])
    told = table(["target", "bound", "cases", "worst", "result"], rows)
    empty = limits_of(content).get("empty_microseconds")
    return told if empty is None else f"{told}\n\nA graph of one empty launch: {empty:.3g} µs."


def times(content: Row) -> str:
    """Tell per case the kernel's time, what the GPU allows, and what others take."""
    limits = limits_of(content)
    facts = f"Copy: {limits.get('bytes_per_second', 0) / 1e12:.3g} TB/s"
    facts += "".join(
        f"; {name.removeprefix('torch.')} product: {rate / 1e12:.3g} TFLOP/s"
        for name, rate in limits.items()
        if name.startswith("torch.")
    )
    rows = [time_line(row) for row in sorted(timed_rows(content), key=lambda row: row["op"])]
    header = ["case", "kernel, µs", "floor, µs", "over floor", "of copy", "TFLOP/s", "others, µs", "speed-up"]  # fmt: skip
    note = (
        "*: with the host's launches. In brackets: how far the results are from the kernel's. Speed-up: over the "
        "fastest other that gives the same results and is timed in the same way, only for a case that is right."
    )
    return f"{facts}.\n\n{table(header, rows)}\n\n{note}" if rows else ""


def time_line(row: Row) -> list[str]:
    others = [f"{n} {microseconds(t)}" for n, t in row["times"].items() if n != "kernel"]
    floors = row.get("floors_microseconds")
    bound = max(floors, key=lambda name: floors[name]) if floors else None
    return [
        f"{row['op']} {row['case']}",
        microseconds(row["times"]["kernel"]),
        f"{floors[bound]:.3g} ({bound})" if floors else "-",
        number(row.get("over_floor")),
        f"{row['share_of_copy']:.0%}" if floors else "-",
        f"{row['teraflops']:.3g}",
        ", ".join(others),
        number(min(row.get("speedups", {}).values(), default=None)),
    ]


def microseconds(times: Row) -> str:
    if "error" in times:
        return f"error {times['error'].splitlines()[0][:60]}"
    told = f"{times['median_microseconds']:.4g}" + ("" if times["graph"] else "*")
    return f"{told} ({times['distance']:.1g})" if "distance" in times else told


def checks(content: Row) -> str:
    """Tell which tests passed."""
    rows = []
    for row in rows_of(content, "tests"):
        if "error" in row:
            continue
        result = {True: "passed", False: "failed", None: row["ended"]}[row["ok"]]
        if row.get("failed"):
            result += f" ({'; '.join(row['failed'][:3])})"
        rows.append([row["case"], str(row.get("passed", "-")), result])
    return table(["tests", "passed", "result"], rows)


def sweeps(content: Row) -> str:
    """Tell per target the best choice and what it gains."""
    rows = [
        [
            row["case"],
            choice(row["shipped"]),
            choice(row["best"]),
            number(row["gain"]),
            str(len(row["tried"])),
        ]
        for row in rows_of(content, "sweep")
        if "gain" in row
    ]
    return table(["target", "shipped", "best", "gain", "tried"], rows)


def choice(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in numbers.items())


def shares(stages: dict[str, float]) -> str:
    """Write out all stages' time, and what takes more than a hundredth of it."""
    total = sum(stages.values())
    if not total:
        return "-"
    parts = ", ".join(f"{n} {s / total:.0%}" for n, s in stages.items() if s > 0.01 * total)
    return f"{total * 1e3:.3g} ms: {parts}"
