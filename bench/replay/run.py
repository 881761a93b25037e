"""Replay settings on the recorded texts: constants, and what is computed from a machine's costs.

    python -m bench.replay.run --json bench/results/replay.json

Two minutes on one thread, the same figures every time: tokens are counted, times come from tables of cost. The record is
made by bench.replay.record. Ends with 1 where a gate is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track

from bench.replay.compare import BATCHES, Half, batch, disturbed, points, single_rows
from bench.replay.measure import fit, right_by_rank, step_gain
from bench.replay.policy import Replay
from bench.replay.positions import Record, load_record
from bench.replay.tables import Table, load_tables
from specdec.costs.prices import price

AVX512, AVX2, FLAT = (0, 1), 2, 3  # places in the file of tables


class Gate(NamedTuple):
    """A figure that was asked for."""

    of: str
    table: str
    least: float
    found: float

    @property
    def met(self) -> bool:
        return self.found >= self.least


def compare(record: Record, tables: list[Table]) -> dict[str, Any]:
    """Replay everything."""
    replay = Replay(record.positions)
    texts = range(len(record.questions))
    even, odd = texts[::2], texts[1::2]
    on_all, on_even, on_odd = (fit(replay, some, tables) for some in (texts, even, odd))
    halves = [Half(even, on_even, odd), Half(odd, on_odd, even)]
    found = []
    for table in track(tables, "replaying"):
        single = single_rows(replay, table, halves)
        rows = {
            "table": table.name,
            "line": table.line(),
            "prices": {rows: price(table.line(), on_all.rate, rows) for rows in (1, 4, 8)},
            "step_gain": step_gain(replay, texts, table, on_all),
            "right_by_rank": right_by_rank(replay, texts, table, on_all),
            "single": single,
            "batches": [batch(replay, table, halves, *batch_of) for batch_of in BATCHES],
            "disturbed": disturbed(replay, table, Half(texts, on_all, texts)),
            "points": points(replay, table, texts, on_all),
        }
        found.append(rows)
    return {
        "device": record.device,
        "positions": len(record.positions.left),
        "halves": [[record.questions[text] for text in half] for half in (even, odd)],
        "fitted": {"all": on_all._asdict(), "halves": [f._asdict() for f in (on_even, on_odd)]},
        "tables": [_plain_json(one) for one in found],
        "gates": [gate._asdict() | {"met": gate.met} for gate in gates(found)],
    }


def gates(found: list[dict[str, Any]]) -> list[Gate]:
    """Judge what was asked for, on both halves together."""
    judged = []
    for at, one in enumerate(found):
        name, single = one["table"], one["single"]["both"]
        of_today = single["computed"] / single["today"]
        least = {AVX2: 0.98, FLAT: 1.15}.get(at, 0.99)
        judged.append(Gate("one row, of the constants", name, least, of_today))
        if at == FLAT:
            of_best = single["computed"] / single["fixed"]
            judged.append(Gate("one row, of the best fixed setting", name, 0.98, of_best))
        for batch_of in one["batches"]:
            rows, both = batch_of["rows"], batch_of["both"]
            kind = f"{rows} rows{', refilled' * batch_of['refill']}"
            of_pair = both["computed"] / both["fixed"]
            judged.append(Gate(f"{kind}, of the best fixed pair", name, 1.0, of_pair))
            if batch_of["refill"] and at != FLAT:  # the rule is a CPU's
                least = {4: 1.12, 8: 1.05}[rows]
                of_rule = both["computed"] / both["today"]
                judged.append(Gate(f"{kind}, of the session's rule", name, least, of_rule))
        judged.append(Gate("times 20 % wrong, one row", name, 0.97, one["disturbed"]["noise"]))
    return judged


def _plain_json(one: dict[str, Any]) -> dict[str, Any]:
    line = one["line"]
    return one | {
        "line": {"level": line.level, "knee": line.knee, "slope": line.slope},
        "prices": {rows: found._asdict() for rows, found in one["prices"].items()},
    }


def rounded(value: Any) -> Any:
    """Keep five digits of every number: more would only be noise of the last operations."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    result = rounded(compare(load_record(), load_tables()))
    for gate in result["gates"]:
        said = "met" if gate["met"] else "MISSED"
        print(f"{gate['table']}: {gate['of']}: {gate['found']:.3f} of {gate['least']}, {said}")
    if options.json:
        options.json.write_text(json.dumps(result) + "\n")
    sys.exit(not all(gate["met"] for gate in result["gates"]))


if __name__ == "__main__":
    main()
