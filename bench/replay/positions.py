"""The recorded positions as trees: per position one node for each distinct continuation, and what each source says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import ROOT
from bench.replay.record import FIXED_LOOKUP, NEW_TOKENS, PLACES, STEPS, WIDTH

RECORD = ROOT / "bench" / "results" / "replay_record.npz"
LENGTH = FIXED_LOOKUP.length

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Positions:
    """P roots of T texts; K is the most nodes that one can have. Nodes are numbered as a union proposes them."""

    starts: Array
    """`[T + 1]`, where each text begins among the positions."""
    left: Array
    """`[P]`, tokens that the row may still get."""
    truth: Array
    """`[P]`, tokens that follow in the text, at least 1."""
    beam_score: Array
    """`[P, STEPS, WIDTH]`, cumulative log-probability."""
    beam_parent: Array
    """`[P, STEPS, WIDTH]`, beam of the step before."""
    beam_node: Array
    """`[P, STEPS, WIDTH]`, the node of a beam."""
    agreed: Array
    """`[P, PLACES]`, tokens that agree before a place; 0 for no place."""
    place_node: Array
    """`[P, PLACES, LENGTH]`, the nodes that a place continues with; -1 behind its end."""
    right: Array
    """`[P, K]`, whether a node is what follows."""
    depth: Array
    """`[P, K]`, of nodes; 0 where there is none."""


@dataclass(frozen=True, slots=True)
class Record:
    """What was recorded, of which texts."""

    positions: Positions
    questions: list[int]
    categories: list[str]
    again: dict[int, tuple[list[int], int]]
    """By text that was written again with the fixed settings: what each round gained, and all nodes verified."""
    device: str


def load_record(path: Path = RECORD, texts: int | None = None) -> Record:
    """Read a record, or only its first texts."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    gains = np.split(arrays["again_gains"], arrays["again_rounds"].cumsum()[:-1])
    again = {
        int(text): (one.tolist(), int(nodes))
        for text, one, nodes in zip(arrays["again"], gains, arrays["again_nodes"], strict=True)
    }
    return Record(
        _positions(arrays, texts or len(arrays["question"])),
        arrays["question"].tolist(),
        arrays["category"].tolist(),
        again,
        str(arrays["machine"]),
    )


def _positions(arrays: dict[str, Array], texts: int) -> Positions:
    prompts = np.split(arrays["prompts"], arrays["prompt_length"].cumsum()[:-1])
    answers = np.split(arrays["texts"], arrays["text_length"].cumsum()[:-1])
    answers = answers[:texts]
    starts = np.concatenate([[0], np.cumsum([len(answer) - 1 for answer in answers])])
    count, most = starts[-1], STEPS * WIDTH + PLACES * LENGTH
    beam_node = np.zeros((count, STEPS, WIDTH), np.int16)
    place_node = np.full((count, PLACES, LENGTH), -1, np.int16)
    right, depth = np.zeros((count, most), bool), np.zeros((count, most), np.int8)
    left, truth = np.zeros(count, np.int16), np.zeros(count, np.int16)
    # In a record a beam's parent is counted among all beams.
    first_of_step = np.maximum(np.arange(STEPS) - 1, 0)[:, None] * WIDTH
    parents = arrays["parents"][:count].reshape(-1, STEPS, WIDTH) - first_of_step
    parents[:, 0] = 0
    tokens = arrays["tokens"][:count].reshape(-1, STEPS, WIDTH)
    for start, prompt, answer in zip(starts, prompts, answers, strict=False):
        text, new = [*prompt.tolist(), *answer.tolist()], answer.tolist()
        for i in range(len(new) - 1):
            at, root = start + i, len(prompt) + i
            left[at], truth[at] = NEW_TOKENS - i - 1, len(new) - i - 1
            tree = _Tree(new[i + 1 :])
            paths: list[tuple[int, ...]] = [()] * WIDTH
            for step in range(STEPS):
                pairs = zip(parents[at, step].tolist(), tokens[at, step].tolist(), strict=True)
                paths = [(*paths[parent], token) for parent, token in pairs]
                beam_node[at, step] = [tree.node(path) for path in paths]
            for row, place in enumerate(arrays["place"][at].tolist()):
                if not arrays["agreed"][at, row]:
                    break
                following = tuple(text[place + 1 : min(place + LENGTH, root) + 1])
                for j in range(len(following)):
                    place_node[at, row, j] = tree.node(following[: j + 1])
            depths = [len(path) for path in tree.nodes]
            depth[at, : len(depths)] = depths
            right[at, : len(depths)] = tree.right()
    scores = arrays["scores"][:count].reshape(-1, STEPS, WIDTH).astype(np.float64)
    agreed = arrays["agreed"][:count].astype(np.int16)
    return Positions(starts, left, truth, scores, parents, beam_node, agreed, place_node, right, depth)  # fmt: skip


class _Tree:
    """Paths numbered as they come, each once."""

    def __init__(self, truth: list[int]) -> None:
        self.truth, self.nodes = tuple(truth), dict[tuple[int, ...], int]()

    def node(self, path: tuple[int, ...]) -> int:
        return self.nodes.setdefault(path, len(self.nodes))

    def right(self) -> list[bool]:
        return [path == self.truth[: len(path)] for path in self.nodes]
