"""The bytes that each launch asks for, counted number by number in Triton's interpreter, with the tiles of an H100.

    python -m bench.counted.bytes

Writes bench/results/bytes.json. How much of what is asked for a GPU's caches hold, only a GPU can tell. So where a launch
touches much of an operand, that counts as often as it is asked for, and where it touches little, once.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is first imported

from rich.progress import track

from bench import ROOT
from bench.counted.naive import ARCH, MODELS, ROUND, STEPS
from bench.counted.work import work_of
from bench.ops.cases import OPS, Call, module_of, take_apart
from specdec_kernels.gpu import KNOWN, pretend
from specdec_kernels.testing.accesses import Launch, Operand, recorded_accesses
from specdec_kernels.testing.case import Case

RESULT = ROOT / "bench" / "results" / "bytes.json"
LARGE = 4_000_000
"""Bytes of an operand that a launch touches from which on they are not expected to wait in a cache for their next reader."""
TARGETS = {"lm_head": 1.05, "draft_step": 1.10, "commit_kv": 1.05}
"""Counted bytes over the least possible, at most."""
PREFIX_TARGET = 1.05
"""How often `tree_attention` reads a prefix, at most, for each tile of rows."""


def count(op: str, case: Case) -> dict[str, Any]:
    """Count what a case asks for.

    Returns:
        `launches`, each with its operands' bytes; `asked`, with all repeats; `counted`, without those of small operands;
        `least`, inputs once and outputs once; `ratio` of the last two. With attention also how often the prefix was read
        and how many tiles of rows there are.
    """
    call = take_apart(op, case, "cpu")
    assert call is not None, f"{case.name}: expected the call of a public function"
    with pretend(KNOWN[ARCH]), recorded_accesses() as launches:
        results = call.run()
    least = work_of(call, results).bytes
    operands = [operand for launch in launches for operand in launch.operands]
    counted = sum(map(counted_bytes, operands))
    row = {
        "op": op,
        "case": case.name,
        "launches": [describe(launch) for launch in launches],
        "asked": sum(operand.loaded + operand.stored for operand in operands),
        "counted": counted,
        "least": least,
        "ratio": counted / least,
        "target": TARGETS.get(op),
    }
    if op == "tree_attention":
        row |= prefix_part(call, launches)
    return row


def counted_bytes(operand: Operand) -> int:
    """Count repeats where much of an operand is touched, and none where little is."""
    if max(operand.distinct_loaded, operand.distinct_stored) > LARGE:
        return operand.loaded + operand.stored
    return operand.distinct_loaded + operand.distinct_stored


def describe(launch: Launch) -> dict[str, Any]:
    """Write out a launch and those of its operands that it touches."""
    names = ("size", "loaded", "stored", "distinct_loaded", "distinct_stored")
    operands = {
        operand.name.removesuffix("_ptr"): {name: getattr(operand, name) for name in names}
        for operand in launch.operands
        if operand.loaded or operand.stored
    }
    return {"kernel": launch.kernel, "operands": operands}


def prefix_part(call: Call, launches: Iterable[Launch]) -> dict[str, float]:
    """How often a prefix's keys and values are read, small or not, and the tiles of rows that read them."""
    arguments = call.arguments
    nodes, heads = arguments["q"].shape[1:3]
    group = heads // arguments["k_cache"].shape[1]
    read = distinct = 0
    rows = {"_tree_attention_kernel": nodes * group, "_shared_prefix_kernel": 0}
    shared = arguments.get("shared_lens")
    # In our cases a shared prefix is everybody's, and nothing of it is a row's own.
    if shared is not None:
        rows = {"_tree_attention_kernel": 0, "_shared_prefix_kernel": len(shared) * nodes * group}
    tiles = 0
    for launch in launches:
        if launch.kernel not in rows:
            continue
        tiles += -(-rows[launch.kernel] // launch.scalars["BLOCK_M"])
        for name in ("k_ptr", "v_ptr"):
            times = launch.operand(name).times_read()[:, :, : int(arguments["prefix_lens"].min())]
            read += int(times.sum())
            distinct += int((times > 0).sum())
    return {"prefix_reads": read / distinct, "row_tiles": tiles}


def main() -> None:
    cases = [(op, case) for op in OPS for case in module_of(op).COUNTED]
    rows = [count(op, case) for op, case in track(cases, description="counting")]
    versions = {name: version(name) for name in ("tilelens", "torch", "triton")}
    result = {
        "versions": versions,
        "arch": ARCH,
        "large": LARGE,
        "prefix_target": PREFIX_TARGET,
        "rows": rows,
        "round": ROUND._asdict(),
        "naive": {
            name: {step: formula(model, ROUND) for step, formula in STEPS.items()}
            for name, model in MODELS.items()
        },
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    main()
