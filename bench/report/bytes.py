"""Tables of bench/counted/bytes.py and of the bytes of naive implementations."""

from __future__ import annotations

from typing import Any

from bench.report.pages import number, table


def bytes_table(result: dict[str, Any]) -> str:
    """Return a row per case."""
    header = [
        "op",
        "case",
        "minimum, KB",
        "counted, KB",
        "requested, KB",
        "counted / minimum",
        "target",
    ]
    rows = [
        [
            f"`{row['op']}`",
            row["case"],
            *(_thousands(row[name]) for name in ("least", "counted", "asked")),
            f"{row['ratio']:.3f}",
            _verdict(row["ratio"], row["target"]),
        ]
        for row in result["rows"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return table(header, rows) + f"\n\nTiles of {result['arch']}; {versions}."


def prefix_table(result: dict[str, Any]) -> str:
    """Return how often a prefix is read."""
    header = ["case", "tiles of rows", "times read", "target"]
    rows = [
        [
            row["case"],
            str(row["row_tiles"]),
            number(row["prefix_reads"]),
            _verdict(row["prefix_reads"], result["prefix_target"] * row["row_tiles"]),
        ]
        for row in result["rows"]
        if "prefix_reads" in row
    ]
    return table(header, rows)


def operands_table(result: dict[str, Any]) -> str:
    """Return the operands that are large enough to count with repeats."""
    header = ["case", "kernel", "operand", "loaded, KB", "distinct, KB", "stored, KB"]
    large = result["large"]
    rows = [
        [
            row["case"],
            f"`{launch['kernel']}`",
            f"`{name}`",
            *(_thousands(operand[key]) for key in ("loaded", "distinct_loaded", "stored")),
        ]
        for row in result["rows"]
        for launch in row["launches"]
        for name, operand in launch["operands"].items()
        if max(operand["distinct_loaded"], operand["distinct_stored"]) > large
    ]
    return table(header, rows)


def naive_table(result: dict[str, Any]) -> str:
    """Return naive bytes, specdec's and the factor, for each model."""
    models, round = result["naive"], result["round"]
    steps = list(next(iter(models.values())))
    rows = [[name, *(_saved(*saved[step]) for step in steps)] for name, saved in models.items()]
    facts = [
        ["prefix", f"{round['prefix']} tokens"],
        ["beams", f"{round['beams']} of {round['length']} tokens, root included"],
        ["tree", f"{round['nodes']} nodes, {round['accepted']} accepted below the root"],
        ["attention, commit", "all layers, one round, 16-bit numbers"],
        ["head", "one draft step, without weights and states"],
    ]
    saved = table(["model", *(f"{step}, MB" for step in steps)], rows)
    return f"{saved}\n\n{table(['one row', ''], facts)}"


def _saved(naive: int, ours: int) -> str:
    return f"{naive / 1e6:,.2f} → {ours / 1e6:,.2f} ({naive / ours:.1f}x less)"


def _thousands(size: int) -> str:
    return f"{size / 1e3:,.1f}"


def _verdict(found: float, target: float | None) -> str:
    if target is None:
        return "-"
    return f"{target:.2f}, {'met' if found <= target else 'missed'}"
