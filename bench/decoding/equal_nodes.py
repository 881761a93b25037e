"""Tokens per round at equal nodes, of methods that need no training and of their unions.

    python -m bench.decoding.equal_nodes --json bench/results/equal_nodes.json

Each method's threshold is lowered, so that its trees are as large as they may be. The texts are the same for all in
float32; a text that differs from plain decoding's is counted and ends the run with 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.progress import track

from bench import ROOT
from specdec import Session, load_target
from specdec.drafters import Drafter, MixedDrafter, load_drafter
from specdec.evaluate.benchmark import chat_prompts, describe_machine
from specdec.evaluate.questions import read_questions
from specdec.metrics import Metrics
from specdec.model.target import Target
from specdec.session import end_tokens

QUESTIONS = ROOT / "tests" / "data" / "questions.jsonl"
METHODS = ("lookup", "suffix+recycling")
NODES = (8, 16)
MIN_PROB = 1e-4


def drafter_of(target: Target, name: str) -> Drafter:
    """Load a method, or each part of a union, with the lowered threshold."""
    parts = [load_drafter(part, target, min_prob=MIN_PROB) for part in name.split("+")]
    return parts[0] if len(parts) == 1 else MixedDrafter(parts)


def main() -> None:
    """Write every text with every method and number of nodes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, default=QUESTIONS)
    parser.add_argument("--per-category", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--method", action="append", help="in place of those of the docs")
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES)
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    target = load_target()
    questions = read_questions(options.prompts, per_category=options.per_category)
    prompts = list(chat_prompts(target.tokenizer, questions, turns=1))
    how: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens,
        "eos_token_ids": end_tokens(target.model.generation_config),
    }
    texts = [Session(target, "plain").generate([p.ids], **how).tokens for p in prompts]
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    different = 0
    for name in options.method or METHODS:
        drafter = drafter_of(target, name)
        for nodes in options.nodes:
            metrics = Metrics()
            for prompt, text in track(list(zip(prompts, texts, strict=True)), f"{name}, {nodes}"):
                session = Session(target, drafter, max_nodes=nodes, guard=False)
                different += session.generate([prompt.ids], metrics=metrics, **how).tokens != text
            found[name][str(nodes)] = {
                "tokens_per_round": metrics.tokens_per_round,
                "nodes_per_round": metrics.nodes_per_round,
                "side_nodes": getattr(drafter, "side_nodes", 0),
            }
            print(name, nodes, found[name][str(nodes)], flush=True)
    result = {
        "machine": describe_machine(target, "plain"),
        "prompts": len(prompts),
        "max_new_tokens": options.max_new_tokens,
        "min_prob": MIN_PROB,
        "different_texts": different,
        "methods": found,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
