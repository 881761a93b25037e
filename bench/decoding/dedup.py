"""How many draft tokens packing removes from ReDrafter's beams (ReDrafter section 4.3.2).

    python -m bench.decoding.dedup --json bench/results/dedup.json

Beams of every width and length are searched at each position of the model's own greedy answers. Lengths are the authors': they
count the root, which all beams share.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from bench import ROOT
from specdec import Session, load_target
from specdec.drafters import Budget, Drafter, Proposals, load_drafter
from specdec.evaluate.benchmark import chat_prompts, describe_machine
from specdec.evaluate.questions import read_questions
from specdec.model.target import Target
from specdec.session import end_tokens
from specdec.state import State
from specdec_kernels import pack_beams

QUESTIONS = ROOT / "tests" / "data" / "questions.jsonl"
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (3, 4, 5, 6)
PERCENTILES = {"p1": 0.01, "p99": 0.99}


class BeamCounter(Drafter):
    """Lets drafters of several widths search behind every root, counts, and proposes nothing: a plain decode."""

    def __init__(self, drafters: dict[int, Drafter], lengths: Sequence[int]) -> None:
        self.drafters, self.lengths = drafters, lengths
        self.without_root: dict[tuple[int, int], list[float]] = defaultdict(list)
        self.with_root: dict[tuple[int, int], list[float]] = defaultdict(list)

    def draft(self, state: State, budget: Budget) -> Proposals:
        for width, drafter in self.drafters.items():
            for length in self.lengths:
                # As deep as asked for, also near the end of a text: only the beams are wanted.
                depth = length - 1
                rows = torch.full_like(budget.row_depth, depth)
                found = drafter.draft(state, Budget(width * depth + 1, depth, rows))
                self.count((width, length), state.roots, found.tokens.unflatten(1, (-1, depth)))
        return Proposals.none(len(state.rows.host), state.text.ids.device)

    def count(self, which: tuple[int, int], roots: Tensor, drafted: Tensor) -> None:
        """Pack beams `[B, W, C-1]` behind their roots and note the share that is gone."""
        _, width, length = drafted.shape
        column = roots[:, None, None].expand(-1, width, 1)
        tree, _ = pack_beams(torch.cat([column, drafted], 2))
        for nodes in tree.sizes.tolist():
            self.without_root[which].append(1 - (nodes - 1) / (width * length))
            self.with_root[which].append(1 - nodes / (width * (length + 1)))


def authors_way(drafter: str, target: Target, width: int) -> Drafter:
    """Load a drafter that searches `width` beams to the end and keeps those alone."""
    return load_drafter(
        drafter,
        target,
        beam_width=width,
        draft_length=max(LENGTHS) - 1,
        keep="final",
        min_prob=0.0,
        min_step_prob=0.0,
    )


def describe(shares: list[float]) -> dict[str, float]:
    values = torch.tensor(shares, dtype=torch.float64)
    points = {name: float(values.quantile(q)) for name, q in PERCENTILES.items()}
    return {"mean": float(values.mean()), **points}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--drafter", default="redrafter", help="shipped, or a checkpoint's folder")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--per-category", type=int, default=1)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--new-tokens", type=int, default=32)
    options = parser.parse_args()
    target = load_target(dtype=getattr(torch, options.dtype))
    counter = BeamCounter({w: authors_way(options.drafter, target, w) for w in WIDTHS}, LENGTHS)
    session = Session(target, counter)
    questions = read_questions(QUESTIONS, limit=options.limit, per_category=options.per_category)
    for prompt in track(list(chat_prompts(target.tokenizer, questions, turns=1))):
        session.generate(
            [prompt.ids],
            max_new_tokens=options.new_tokens,
            eos_token_ids=end_tokens(target.model.generation_config),
        )
    shares: list[dict[str, Any]] = [
        {
            "width": width,
            "length": length,
            "without_root": describe(without),
            "with_root": describe(counter.with_root[width, length]),
        }
        for (width, length), without in counter.without_root.items()
    ]
    result = {
        "machine": describe_machine(target, reference="-"),
        "drafter": options.drafter,
        "questions": len(questions),
        "new_tokens": options.new_tokens,
        "contexts": len(counter.without_root[WIDTHS[0], LENGTHS[0]]),
        "shares": shares,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
