"""Record, at every position of greedy texts, what a wide ReDrafter and a wide lookup propose.

    python -m bench.replay.record question.jsonl --out bench/results/replay_record.npz

Ten minutes on one thread. The default model writes in float32. A few texts are then written again by the drafter `mixed`
with its fixed settings: what each of their rounds gained tells whether the replay is right.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from specdec import Session, load_target
from specdec.drafters import (
    Budget,
    Drafter,
    LookupConfig,
    LookupDrafter,
    MixedDrafter,
    Proposals,
    load_drafter,
)
from specdec.drafters.lookup import matches
from specdec.drafters.parts.calibration import calibration_of
from specdec.evaluate.benchmark import Prompt, chat_prompts, describe_machine
from specdec.evaluate.questions import read_questions
from specdec.model.target import Target
from specdec.session import end_tokens
from specdec.state import State

WIDTH, STEPS = 8, 4
PLACES = 8
NEW_TOKENS = 96
PER_CATEGORY, ROWS = 3, 7
WRITTEN_AGAIN = 4
# Settings that the replay starts from; given here, so that a record means the same whatever the defaults are.
FIXED_SEARCH = {"beam_width": 4, "draft_length": 4, "min_prob": 0.1, "min_step_prob": 0.4}
FIXED_LOOKUP_LEAST = 0.08
FIXED_LOOKUP = LookupConfig(places=4, length=15, min_prob=FIXED_LOOKUP_LEAST)
LOOKUP = calibration_of("lookup").tables
FIXED_NODES = 16


class Recorder(Drafter):
    """Keeps what both sources say, and proposes nothing: every position becomes a root."""

    def __init__(self, target: Target, rows: int) -> None:
        wide: dict[str, Any] = {"min_prob": 0.0, "min_step_prob": 0.0}
        self.search = load_drafter(
            "redrafter", target, beam_width=WIDTH, draft_length=STEPS, **wide
        )
        self.seen: list[list[dict[str, Tensor]]] = [[] for _ in range(rows)]

    def draft(self, state: State, budget: Budget) -> Proposals:
        beams = self.search.draft(state, Budget(WIDTH * STEPS + 1, STEPS, state.row_depth))
        agreed, place = best_places(state)
        for at, row in enumerate(state.rows.host):
            self.seen[row].append(
                {
                    "tokens": beams.tokens[at],
                    "parents": beams.parents[at],
                    "scores": beams.scores[at],
                    "agreed": agreed[at],
                    "place": place[at],
                }
            )
        return Proposals.none(len(state.rows.host), state.text.ids.device)


def best_places(state: State) -> tuple[Tensor, Tensor]:
    """Find the places that lookup follows, best first: tokens that agree `[B, W]`, 0 for none, and columns `[B, W]`."""
    places = max(state.cache.host_lengths[row] for row in state.rows.host)
    root = state.lengths[:, None]
    column = torch.arange(places)
    matched = matches(state.text.ids[state.rows.ids, : places + 1], root, len(LOOKUP["follows"]))[
        :, :-1
    ]
    matched = torch.where(column < root, matched, 0)
    best, at = (matched * places + column).topk(min(PLACES, places), 1)
    return best.div(places, rounding_mode="floor"), at


def chosen(prompts: list[Prompt]) -> list[Prompt]:
    """Take a few questions of each category: spread over the file, of long prompts those that are not the longest."""
    groups: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.question.category].append(prompt)
    taken = []
    for category, group in groups.items():
        if category in ("summarization", "rag"):
            by_length = sorted(group[::4], key=lambda prompt: len(prompt.ids))
            taken += by_length[1 : 2 * PER_CATEGORY : 2]
        else:
            apart = max(1, (len(group) - 1) // (PER_CATEGORY - 1))
            taken += group[:: min(apart, 13)][:PER_CATEGORY]
    return taken


def record(target: Target, prompts: list[Prompt], ends: list[int]) -> dict[str, Any]:
    """Write all texts, in batches of like length, and return the arrays of a record."""
    by_length = sorted(range(len(prompts)), key=lambda at: len(prompts[at].ids))
    batches = [by_length[at : at + ROWS] for at in range(0, len(by_length), ROWS)]
    texts: dict[int, list[int]] = {}
    seen: dict[int, list[dict[str, Tensor]]] = {}
    for batch in track(batches, "recording"):
        recorder = Recorder(target, len(batch))
        written = Session(target, recorder, max_nodes=1).generate(
            [prompts[at].ids for at in batch], max_new_tokens=NEW_TOKENS, eos_token_ids=ends
        )
        texts.update(zip(batch, written.tokens, strict=True))
        seen.update(zip(batch, recorder.seen, strict=True))
    order = range(len(prompts))
    positions = [one for at in order for one in seen[at]]

    def stacked(name: str, dtype: type[np.generic]) -> np.ndarray:
        return np.stack([one[name].numpy() for one in positions]).astype(dtype)

    return {
        "question": np.array([prompts[at].question.question_id for at in order]),
        "category": np.array([prompts[at].question.category for at in order]),
        "prompt_length": np.array([len(prompts[at].ids) for at in order]),
        "text_length": np.array([len(texts[at]) for at in order]),
        "prompts": np.concatenate([prompts[at].ids for at in order]).astype(np.uint16),
        "texts": np.concatenate([texts[at] for at in order]).astype(np.uint16),
        "tokens": stacked("tokens", np.uint16),
        "parents": stacked("parents", np.int8),
        "scores": stacked("scores", np.float32),
        "agreed": stacked("agreed", np.uint8),
        "place": stacked("place", np.uint16),
    }


def write_again(target: Target, prompts: list[Prompt], ends: list[int]) -> dict[str, Any]:
    """Write the shortest prompts with the fixed settings; per round, what was gained."""
    search = load_drafter("redrafter", target, **FIXED_SEARCH)
    mixed = MixedDrafter([search, LookupDrafter(FIXED_LOOKUP)])
    at = sorted(range(len(prompts)), key=lambda at: len(prompts[at].ids))[:WRITTEN_AGAIN]
    written = [
        Session(target, mixed, max_nodes=FIXED_NODES, guard=False)
        .generate([prompts[i].ids], max_new_tokens=NEW_TOKENS, eos_token_ids=ends)
        .metrics
        for i in at
    ]
    return {
        "again": np.array(at),
        "again_rounds": np.array([metrics.rounds for metrics in written]),
        "again_gains": np.concatenate([metrics.gains for metrics in written]).astype(np.uint8),
        "again_nodes": np.array([metrics.nodes for metrics in written]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", type=Path, help="in Spec-Bench's format")
    parser.add_argument("--out", type=Path, required=True, help="the record, .npz")
    options = parser.parse_args()
    torch.set_num_threads(1)
    target = load_target(dtype=torch.float32)
    ends = end_tokens(target.model.generation_config)
    questions = read_questions(options.questions)
    prompts = chosen(list(chat_prompts(target.tokenizer, questions, turns=1)))
    arrays = record(target, prompts, ends) | write_again(target, prompts, ends)
    machine = describe_machine(target, "plain")
    np.savez_compressed(options.out, machine=np.array(machine["device"]), **arrays)
    print(f"{len(prompts)} texts, {len(arrays['tokens'])} positions, {options.out.stat().st_size} bytes")  # fmt: skip


if __name__ == "__main__":
    main()
