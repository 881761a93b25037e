"""Table of bench/releases/compat.py."""

from __future__ import annotations

from typing import Any

from bench.report.pages import table


def compat_table(environments: dict[str, dict[str, Any]]) -> str:
    header = list(_cells(next(iter(environments.values()))))
    rows = [[name, *_cells(entry).values()] for name, entry in environments.items()]
    return table(["environment", *header], rows)


def _cells(entry: dict[str, Any]) -> dict[str, str]:
    kernels, tests = entry["kernels"], entry["tests"]
    return {
        **entry["versions"],
        "tests passed": str(tests["passed"]),
        "failed": str(tests["failed"]),
        "skipped": str(tests["skipped"]),
        "kernels compiled": str(kernels["compiled"]),
        "not compiled": str(len(kernels["failed"])),
        "spilled": str(len(kernels["spilled"])),
    }
