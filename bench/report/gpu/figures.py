"""What times say: floors, shares of what the GPU can do, and speed-ups over others; from rows alone."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

LAUNCH_MICROSECONDS = 8.0
"""What no call on a GPU is asked to go below."""
# What `torch.testing.assert_close` allows by default, here of |difference| / |expected|; but others add float32 numbers up in
# another order, which shows most in a likely token's small log-probability.
AGREES = {"torch.float32": 1e-5, "torch.float16": 1e-3, "torch.bfloat16": 1.6e-2}


def floors_of(size: int, flops: int, bandwidth: float, rate: float) -> dict[str, float]:
    """Return the microseconds that the GPU's memory, its arithmetic and a launch ask for."""
    memory, compute = size / bandwidth * 1e6, flops / rate * 1e6
    return {"memory": memory, "compute": compute, "launch": LAUNCH_MICROSECONDS}


def rows_of(content: Row, part: str) -> list[Row]:
    """Return the results of a part's own jobs."""
    return [r for r in content["rows"] if r["part"] == part and "beside" not in r]


def gates_of(content: Row, part: str = "correct") -> dict[str, bool | None]:
    """Tell for each case whether it is right; None where it was not begun, not finished or could not be told."""
    gates: dict[str, bool | None] = dict.fromkeys(content.get("planned", {}).get(part, []))
    for row in rows_of(content, part):
        gates[row["case"]] = False if "error" in row else row.get("ok")
    return gates


def limits_of(content: Row) -> dict[str, float]:
    """Return what was measured of the GPU itself."""
    found = [row["limits"] for row in rows_of(content, "times") if "limits" in row]
    return found[-1] if found else {}


def timed_rows(content: Row) -> list[Row]:
    """Put together what was timed of each case, with figures: those of the kernel, and speed-ups where its gate is passed."""
    cases: dict[str, Row] = {}
    for row in rows_of(content, "times"):
        if "times" in row:
            case = cases.setdefault(f"{row['op']} {row['of']}", {**row, "times": {}})
            case["times"] |= row["times"]
    limits, gates = limits_of(content), gates_of(content)
    found = []
    for name, row in cases.items():
        # Splits change no result's meaning: their gate is that of the op's other cases.
        row = {**row, "case": row["of"], "gate": gates.get(name)}
        found.append({**row, **(judged(row, limits) if "kernel" in row["times"] else {})})
    return [row for row in found if "kernel" in row["times"]]


def judged(row: Row, limits: dict[str, float]) -> Row:
    """Put the kernel's time beside what the GPU allows, and beside the peers' where it may be."""
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
    """Tell whether a peer gives the kernel's results, and whether the host's launches are in both times or in none."""
    if "error" in times or times["graph"] != kernel["graph"]:
        return False
    return bool(times["distance"] <= AGREES[dtype])
