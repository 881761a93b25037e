"""Tables of the parts of a GPU run; texts.py has those of whole texts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bench.report.gpu.figures import gates_of, limits_of, rows_of, timed_rows
from bench.report.gpu.targets import TARGETS, bound_of, judge, name_of
from bench.report.pages import number, table

NOT_MEASURED = "**Not measured.**"

Row = dict[str, Any]


def correct(content: Row, part: str = "correct") -> str:
    """Return per op how many cases are correct, wrong and unknown, and which are wrong."""
    gates = gates_of(content, part)
    why = {row["case"]: row.get("why", {}) for row in rows_of(content, part)}
    rows = []
    for op in sorted({case.partition(" ")[0] for case in gates}):
        own = {case: ok for case, ok in gates.items() if case.partition(" ")[0] == op}
        count = Counter(own.values())
        failed = [f"{case.partition(' ')[2]} ({reasons(why.get(case))})" for case, ok in own.items() if ok is False]  # fmt: skip
        rows.append([op, str(count[True]), str(count[False]), str(count[None]), "; ".join(failed)])
    return table(["op", "correct", "wrong", "unknown", "wrong cases"], rows)


def reasons(why: Any) -> str:
    return ", ".join(f"{gate}: {text[:90]}" for gate, text in why.items()) if why else "see below"


def rounds(content: Row) -> str:
    """Return the times of passes (host, device, graph) and of rounds by tokens per round."""
    found = rows_of(content, "rounds")
    passes = {row["case"]: row for row in found if row.get("kind") == "verify"}
    header = [
        "verify",
        "prefix",
        "until the call returns, ms",
        "until the device is done, ms",
        "CUDA graph, ms",
        "bits of the graph replay",
    ]
    lines = [
        [
            f"{row['model']}, N {row['nodes']}, B {row['batch']}",
            str(row["prefix"]),
            *(number(row[f"{name}_milliseconds"]) for name in ("launch", "eager")),
            number(row.get("graph_milliseconds")),
            {True: "equal", False: "different", None: "-"}[row.get("same")],
        ]
        for row in passes.values()
    ]
    told = [table(header, lines)] if lines else []
    texts = [row for row in found if row.get("kind") == "texts"]
    if texts:
        told.append(table(
            ["texts", "tokens/round", "text", "round, ms", "device, ms", "launches", "speed-up over plain",
             "host, by stage", "device, by stage"],
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
        "identical" if row["identical"] else "**different**",
        number(row["round_milliseconds"]),
        number(sum(row["device_stages"].values()) * 1e3),
        f"{row['launches_per_round']:.0f}",
        number(plain and speed * plain["round_milliseconds"] / plain["tokens_per_round"]),
        shares(row["host_stages"]),
        shares(row["device_stages"]),
    ]


def targets(content: Row) -> str:
    """Return which targets are met, each judged by its worst case."""
    timed = timed_rows(content)
    if not timed:
        return NOT_MEASURED
    rows = []
    for target in TARGETS:
        found = judge(target, timed)
        worst = "-"
        if found.worst:
            worst = f"{found.worst[0]:.3g}{target.unit} ({found.worst[1]})"
        cases = f"{found.measured} of {found.cases}"
        rows.append([name_of(target), bound_of(target), cases, worst, found.result])
    told = table(["target", "bound", "cases", "worst case", "result"], rows)
    empty = limits_of(content).get("empty_microseconds")
    return told if empty is None else f"{told}\n\nA graph of one empty launch: {empty:.3g} µs."


def times(content: Row) -> str:
    """Return per case the kernel's time, its floor and the peers' times."""
    limits = limits_of(content)
    facts = f"Copy: {limits.get('bytes_per_second', 0) / 1e12:.3g} TB/s"
    facts += "".join(
        f"; {name.removeprefix('torch.')} product: {rate / 1e12:.3g} TFLOP/s"
        for name, rate in limits.items()
        if name.startswith("torch.")
    )
    rows = [time_line(row) for row in sorted(timed_rows(content), key=lambda row: row["op"])]
    header = ["case", "kernel, µs", "floor, µs", "time / floor", "share of copy bandwidth", "TFLOP/s", "peers, µs", "speed-up"]  # fmt: skip
    note = (
        "*: includes the host's launches. In brackets: distance of the results from the kernel's. Speed-up: over the "
        "fastest peer with the same results and the same way of timing; only for correct cases."
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
    """Return which tests passed."""
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
    """Return per target the best choice and its gain."""
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
    return table(["target", "shipped tiles", "best tiles", "speed-up", "tried"], rows)


def choice(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in numbers.items())


def shares(stages: dict[str, float]) -> str:
    """Format the total time of all stages, and stages above 1 % of it."""
    total = sum(stages.values())
    if not total:
        return "-"
    parts = ", ".join(f"{n} {s / total:.0%}" for n, s in stages.items() if s > 0.01 * total)
    return f"{total * 1e3:.3g} ms: {parts}"
