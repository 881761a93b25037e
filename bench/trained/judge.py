"""Acceptance and speed of the drafters of `bench.trained.one_budget`, on questions outside their training text.

    python -m bench.trained.judge --folder .training/one_budget --json bench/results/one_budget.json
    specdec calibrate .training/one_budget/eagle3 --prompts DEVELOPMENT        # each of them, before the next line
    python -m bench.trained.judge --folder .training/one_budget --json bench/results/one_budget.json --speed

The first command decodes every prompt in float32 with each drafter at several numbers of nodes; a drafter proposes as many
nodes as it can. `--speed` times the drafters with computed settings, alternating with plain decoding, on an otherwise idle
machine. Counts that the file holds are kept. The exit status is 1 if a text differs from plain decoding's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from bench.decoding.one_factor import NEW, Factor, interval, prompts_of, write
from specdec import Session, load_drafter, load_target
from specdec.drafters import Drafter
from specdec.evaluate.benchmark import describe_machine
from specdec.evaluate.calibrate import wide_settings
from specdec.metrics import CTAR_WIDTHS, Metrics
from specdec.model.target import Target
from specdec.session import end_tokens

NODES = (4, 8, 16, 32)
PER_CATEGORY = 2
BEAMS = {"redrafter": "beam_width", "eagle3": "width"}
"""Settings that would follow from the cost table, and so differ between machines."""
WIDTH = 8


def main() -> None:
    """Measure what a file of results lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES)
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {"methods": {}}
    if options.json.exists():
        result = json.loads(options.json.read_text())
    target = load_target()
    prompts = list(prompts_of(target, Factor(), PER_CATEGORY))
    result |= {
        "machine": describe_machine(target, "plain"),
        "prompts": len(prompts),
        "max_new_tokens": NEW,
        "text": json.loads((options.folder / "text.json").read_text()),
    }

    def keep() -> None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")

    folders = sorted(path.parent for path in options.folder.glob("*/training.json"))
    for folder in folders:
        row = result["methods"].setdefault(folder.name, {})
        row["training"] = training(folder)
    if options.speed:
        speeds(target, folders, prompts, result["methods"])
        result["speed_machine"] = describe_machine(target, "plain")
    else:
        count(target, folders, prompts, options.nodes, result["methods"], keep)
    keep()
    rows = [at for row in result["methods"].values() for at in row.get("nodes", {}).values()]
    sys.exit(any(at["different_texts"] for at in rows))


def training(folder: Path) -> dict[str, Any]:
    """Return the cost of a training."""
    report = json.loads((folder / "training.json").read_text())
    spent = json.loads(folder.with_suffix(".json").read_text())
    schedule = report["recipe"]["schedule"]
    return {
        "parameters": report["parameters"],
        "seconds": spent["seconds"],
        "peak_bytes": spent["peak_bytes"],
        "threads": report["threads"],
        **{name: schedule[name] for name in ("epochs", "batch", "learning_rate")},
        "validation": [line["validation"] for line in report["log"] if "validation" in line],
    }


def wide_drafter(target: Target, folder: Path) -> Drafter:
    """Load a drafter that proposes as many nodes as it can."""
    settings: dict[str, Any] = wide_settings(load_drafter(folder, target))
    method = folder.name.split("-")[0]
    if method in BEAMS:
        settings[BEAMS[method]] = WIDTH
    return load_drafter(folder, target, **settings)


def count(
    target: Target,
    folders: list[Path],
    prompts: list[list[int]],
    sizes: list[int],
    rows: dict[str, Any],
    keep: Callable[[], None],
) -> None:
    """Decode all prompts with each drafter and number of nodes."""
    how: dict[str, Any] = {
        "max_new_tokens": NEW,
        "eos_token_ids": end_tokens(target.model.generation_config),
    }
    texts = [Session(target, "plain").generate([prompt], **how).tokens for prompt in prompts]
    for folder in folders:
        found = rows[folder.name].setdefault("nodes", {})
        drafter = wide_drafter(target, folder)
        for nodes in sizes:
            if str(nodes) in found:
                continue
            metrics, different = Metrics(), 0
            work = list(zip(prompts, texts, strict=True))
            for prompt, text in track(work, f"{folder.name}, {nodes}"):
                session = Session(target, drafter, max_nodes=nodes, guard=False)
                different += session.generate([prompt], metrics=metrics, **how).tokens != text
            found[str(nodes)] = {
                "tokens_per_round": metrics.tokens_per_round,
                "nodes_per_round": metrics.nodes_per_round,
                "ctar": [metrics.ctar(width) for width in CTAR_WIDTHS],
                "different_texts": different,
            }
            print(folder.name, nodes, found[str(nodes)], flush=True)
            keep()


def speeds(
    target: Target, folders: list[Path], prompts: list[list[int]], rows: dict[str, Any]
) -> None:
    """Time all prompts with plain decoding and with each drafter, in rotating order."""
    drafters = {"plain": load_drafter("plain", target)}
    drafters |= {folder.name: load_drafter(folder, target) for folder in folders}
    names = list(drafters)
    times: dict[str, list[float]] = {name: [] for name in names}
    metrics = {name: Metrics() for name in names}
    for name in names:
        write(target, drafters[name], [prompts[0]], Factor(), 12)
    for at, prompt in enumerate(track(prompts, "speed")):
        turn = at % len(names)
        for name in names[turn:] + names[:turn]:
            spent, written = write(target, drafters[name], [prompt], Factor(), NEW)
            times[name].append(spent)
            metrics[name].add(written.metrics)
    for name in names[1:]:
        ratio, low, high = interval(np.array([times["plain"], times[name]]).T)
        measured = metrics[name]
        rows[name]["speed"] = {
            "ratio": ratio,
            "interval": [low, high],
            "draft_ms": 1e3 * measured.seconds.get("draft", 0.0) / measured.rounds,
            "tokens_per_round": measured.tokens_per_round,
            "nodes_per_round": measured.nodes_per_round,
        }
        print(name, rows[name]["speed"], flush=True)


if __name__ == "__main__":
    main()
