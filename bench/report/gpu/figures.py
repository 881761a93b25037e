"""Floors, shares of the GPU's limits and speed-ups over peers, from timed rows."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

LAUNCH_MICROSECONDS = 8.0
"""The least time expected of any call on a GPU."""
# Defaults of `torch.testing.assert_close`, applied to |difference| / |expected|, but wider in float32: peers sum in another
# order, which shows most in the small log-probability of a likely token.
AGREES = {"torch.float32": 1e-5, "torch.float16": 1e-3, "torch.bfloat16": 1.6e-2}


def floors_of(size: int, flops: int, bandwidth: float, rate: float) -> dict[str, float]:
    """Return the microseconds that memory, arithmetic and a launch need at least."""
    memory, compute = size / bandwidth * 1e6, flops / rate * 1e6
    return {"memory": memory, "compute": compute, "launch": LAUNCH_MICROSECONDS}


def rows_of(content: Row, part: str) -> list[Row]:
    """Return the results of a part's own jobs."""
    return [r for r in content["rows"] if r["part"] == part and "beside" not in r]


def gates_of(content: Row, part: str = "correct") -> dict[str, bool | None]:
    """Return for each case whether it is correct; None if it was not run, not finished or could not be judged."""
    gates: dict[str, bool | None] = dict.fromkeys(content.get("planned", {}).get(part, []))
    for row in rows_of(content, part):
        gates[row["case"]] = False if "error" in row else row.get("ok")
    return gates


def limits_of(content: Row) -> dict[str, float]:
    """Return the measured limits of the GPU."""
    found = [row["limits"] for row in rows_of(content, "times") if "limits" in row]
    return found[-1] if found else {}


def timed_rows(content: Row) -> list[Row]:
    """Merge the times of each case and add figures; speed-ups only if the case passed its gate."""
    cases: dict[str, Row] = {}
    for row in rows_of(content, "times"):
        if "times" in row:
            case = cases.setdefault(f"{row['op']} {row['of']}", {**row, "times": {}})
            case["times"] |= row["times"]
    limits, gates = limits_of(content), gates_of(content)
    found = []
    for name, row in cases.items():
        # Splits do not change results: their gate is that of the op's other cases.
        row = {**row, "case": row["of"], "gate": gates.get(name)}
        found.append({**row, **(judged(row, limits) if "kernel" in row["times"] else {})})
    return [row for row in found if "kernel" in row["times"]]


def judged(row: Row, limits: dict[str, float]) -> Row:
    """Compare the kernel's time with the GPU's limits, and with comparable peers."""
    kernel = row["times"]["kernel"]
    microseconds = kernel["median_microseconds"]
    figures: Row = {"teraflops": row["flops"] / microseconds * 1e-6}
    if limits:
        bandwidth = limits["bytes_per_second"]
        floors = floors_of(row["bytes"], row["flops"], bandwidth, limits[row["dtype"]])
        figures |= {
            "floors_microseconds": floors,
            "over_floor": microseconds / max(floors.values()),
            "share_of_copy": row["bytes"] / (microseconds * 1e-6) / bandwidth,
        }
    if row["gate"]:
        figures["speedups"] = {
            name: times["median_microseconds"] / microseconds
            for name, times in row["times"].items()
            if times is not kernel and comparable(times, kernel, row["dtype"])
        }
    return figures


def comparable(times: Row, kernel: Row, dtype: str) -> bool:
    """Return whether a peer gives the kernel's results and is timed the same way, with or without the host's launches."""
    if "error" in times or times["graph"] != kernel["graph"]:
        return False
    return bool(times["distance"] <= AGREES[dtype])
