"""Tables of what `make gpu` has measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpu_targets import TARGETS, judge
from pages import number, table

PARTS = ("tests", "times", "sweep", "decoding")
NOT_MEASURED = "**Not measured.**"


def gpu_page(folder: Path) -> str:
    """Return the tables in one, or that nothing was measured: a dry run's figures are none."""
    if not any(read(folder, part).get("measured") for part in PARTS):
        return NOT_MEASURED
    return "\n\n".join(f"**{name}**\n\n{text}" for name, text in report(folder).items())


def report(folder: Path) -> dict[str, str]:
    """Return a table per part, and one of the targets; what did not run says so."""
    contents = {part: read(folder, part) for part in PARTS}
    tables = {"tests": checks, "times": times, "sweep": sweeps, "decoding": texts}
    told = {part: make(contents[part]) for part, make in tables.items()}
    for part, content in contents.items():
        if content:
            told[part] += f"\n\n{progress(content)}."
    first = next((c for c in contents.values() if c), None)
    machines = {"machine": machine(first)} if first else {}
    return {**machines, "targets": targets(contents["times"]), **told}


def read(folder: Path, part: str) -> dict[str, Any]:
    file = folder / f"{part}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def progress(content: dict[str, Any]) -> str:
    """Say how much of a part was done in its time."""
    return f"{content.get('done', len(content['rows']))} of {content.get('planned', '?')} cases"


def targets(content: dict[str, Any]) -> str:
    """Tell which of the targets are met, each by its worst case."""
    if not content:
        return NOT_MEASURED
    empty = content.get("limits", {}).get("empty_microseconds")
    rows = []
    for target in TARGETS:
        found = judge(target, content)
        worst = "-"
        if found.worst:
            worst = f"{found.worst[0]:.3g}{target.unit} ({found.worst[1]})"
        bound = f"{'≥' if target.least else '≤'} {target.bound:g}{target.unit}"
        cases = f"{found.measured} of {found.cases}"
        rows.append([f"{', '.join(target.ops)}, {target.name}", bound, cases, worst, found.result])
    told = table(["target", "bound", "cases", "worst", "result"], rows)
    return told if empty is None else f"{told}\n\nA graph of one empty launch: {empty:.3g} µs."


def machine(content: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    card = ", ".join(f"{name} {value}" for name, value in content.get("card", {}).items())
    kind = "measured" if content["measured"] else "dry run, nothing here is measured"
    return "; ".join(filter(None, [content["device"], card, versions, content["date"], kind])) + "."


def checks(content: dict[str, Any]) -> str:
    """Tell per op what passed."""
    if not content:
        return NOT_MEASURED
    rows = []
    for row in sorted(content["rows"], key=lambda r: (r["kind"], r["op"])):
        if row["kind"] == "warm":
            continue
        result = {True: "passed", False: "failed", None: row.get("ended", "-")}[row["ok"]]
        wrong = [*row.get("failed", []), *row.get("bad", [])]
        if row["ok"] is False:
            result += f" ({', '.join(wrong[:3]) or row.get('ended', '-')})"
        count = str(row.get("passed", row.get("cases", "-")))
        rows.append([row["kind"], row["op"], count, result])
    return table(["check", "op", "tests or cases", "result"], rows)


def times(content: dict[str, Any]) -> str:
    """Tell per case the kernel's time, what the GPU allows, and what others take."""
    if not content:
        return NOT_MEASURED
    limits = content.get("limits", {})
    facts = f"Copy: {limits.get('bytes_per_second', 0) / 1e12:.3g} TB/s"
    facts += "".join(
        f"; {name.removeprefix('torch.')} product: {rate / 1e12:.3g} TFLOP/s"
        for name, rate in limits.items()
        if name.startswith("torch.")
    )
    rows = []
    for row in sorted(content["rows"], key=lambda r: r["op"]):
        if "times" not in row:
            why = row.get("error") or row.get("skipped", "")
            rows.append([f"{row['op']} {row['case']}", "-", "-", "-", "-", why[:80], "-"])
            continue
        others = [f"{n} {microseconds(t)}" for n, t in row["times"].items() if n != "kernel"]
        least = min(row.get("speedups", {}).values(), default=None)
        floors = row["floors_microseconds"]
        bound = max(floors, key=lambda name: floors[name])
        rows.append(
            [
                f"{row['op']} {row['case']}",
                microseconds(row["times"]["kernel"]),
                f"{floors[bound]:.3g} ({bound})",
                f"{row['over_floor']:.2f}",
                f"{row['share_of_copy']:.0%}",
                ", ".join(others),
                number(least),
            ]
        )
    header = ["case", "kernel, µs", "floor, µs", "over floor", "of copy", "others, µs", "speed-up"]
    note = (
        "*: with the host's launches. In brackets: how far the results are from the kernel's. Speed-up: over the "
        "fastest other that gives the same results and is timed in the same way, only for an op that passed all checks."
    )
    return f"{facts}.\n\n{table(header, rows)}\n\n{note}"


def microseconds(times: dict[str, Any]) -> str:
    if "error" in times:
        return f"error {times['error'].splitlines()[0][:60]}"
    told = f"{times['median_microseconds']:.4g}" + ("" if times["graph"] else "*")
    return f"{told} ({times['distance']:.1g})" if "distance" in times else told


def sweeps(content: dict[str, Any]) -> str:
    """Tell per target the best choice and what it gains."""
    if not content:
        return NOT_MEASURED
    rows = []
    for row in content["rows"]:
        name = f"{row['op']} {row['case']}"
        if "error" in row:
            rows.append([name, row["error"][:80], "-", "-", "-"])
            continue
        rows.append(
            [
                name,
                choice(row["shipped"]),
                choice(row["best"]),
                number(row["gain"]),
                str(len(row["tried"])),
            ]
        )
    return table(["target", "shipped", "best", "gain", "tried"], rows)


def choice(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in numbers.items())


def texts(content: dict[str, Any]) -> str:
    """Tell per method its speed, whether its texts are right, and where a round's time goes."""
    if not content:
        return f"{NOT_MEASURED} Needs `MODEL=`."
    staged = content.get("device_stages", {})
    rows = []
    for row in content["rows"]:
        rows.append(
            [
                row["method"],
                f"{row['tokens_per_second']:.1f}",
                number(row["speedup_vs_transformers"]),
                number(row["speedup_vs_plain"]),
                number(row["tokens_per_round"]),
                f"{row['identical']}/{row['answers']}",
                str(row["ties"]),
                str(row["errors"]),
                shares(row["stage_seconds"]),
                shares(staged.get(row["method"], {})),
            ]
        )
    header = ["method", "tokens/s", "x transformers", "x plain", "tokens/round", "identical"]
    told = table([*header, "ties", "errors", "wall time per stage", "device time per stage"], rows)
    note = "Wall time: of all texts, as the host sees it. Device time: of what runs on the GPU for one text, under a profiler."
    return f"{told}\n\n{note}"


def shares(stages: dict[str, float]) -> str:
    """Write out all stages' time, and what takes more than a hundredth of it."""
    total = sum(stages.values())
    if not total:
        return "-"
    parts = ", ".join(f"{n} {s / total:.0%}" for n, s in stages.items() if s > 0.01 * total)
    return f"{total * 1e3:.3g} ms: {parts}"
