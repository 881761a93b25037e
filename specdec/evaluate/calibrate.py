"""Calibration of a drafter: measures how its scores relate to acceptance, and its rate.

Scores are measured on trees with all proposals of the drafter, the rate on its default trees. Times come from the cost
table, so the result does not depend on the machine's load.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..costs.table import Costs, name_of
from ..drafters import Drafter, load_drafter
from ..drafters.methods import METHODS
from ..drafters.parts.calibration import Calibration
from ..model.target import Target
from ..observer import Round, VerifiedTree
from ..session import Session, end_tokens

# Range of claimed probabilities that are compared: near the threshold on some machine. Likelier nodes are always verified.
CLAIMED = (0.02, 0.3)
WIDE_NODES = 64
# Settings with which a method proposes as much as it can.
WIDE = {"min_prob": 1e-4, "min_step_prob": 0.0, "eta": 0.0}
Told = Callable[[str, int, int, str], None]


class Scores:
    """Collects claimed probabilities of nodes and whether they were accepted."""

    def __init__(self, *, chain: bool) -> None:
        """Create an empty collection; `chain` if drafts are chains that stop by the last token's own probability."""
        self.chain = chain
        self.claimed = self.right = self.held = self.gained = 0.0

    def __call__(self, round: Round) -> None:
        """Add a round."""
        for tree in round.trees():
            self.add(tree)

    def add(self, tree: VerifiedTree) -> None:
        """Add a tree."""
        on_path, depths = set(tree.path), [0] * len(tree.tokens)
        held: dict[int, float] = {}
        for node in range(1, len(tree.tokens)):
            parent = tree.parents[node]
            depths[node] = depths[parent] + 1
            claimed = math.exp(tree.scores[node])
            if self.chain or CLAIMED[0] <= claimed <= CLAIMED[1]:
                self.claimed += claimed
                self.right += node in on_path
            share = claimed / math.exp(tree.scores[parent]) if self.chain and parent else claimed
            held[depths[node]] = held.get(depths[node], 0.0) + share
        for depth, mass in held.items():
            if depth + 1 in held:  # a step followed
                self.held += mass
                self.gained += len(tree.path) > depth + 1


def calibrate(
    target: Target,
    name: str,
    prompts: Sequence[list[int]],
    costs: Costs,
    *,
    max_new_tokens: int,
    tell: Told,
) -> Calibration:
    """Calibrate a drafter by answering every prompt twice with it.

    Args:
        target: the target.
        name: name of a single drafter.
        prompts: token ids per prompt.
        costs: cost table of the target and the drafter.
        max_new_tokens: most new tokens per prompt.
        tell: progress callback.

    Raises:
        ValueError: if nothing was drafted.
    """
    drafter = load_drafter(name, target)
    known = drafter.calibration
    assert known is not None
    scores = Scores(chain=drafter.tap is not None)
    wide = load_drafter(name, target, **wide_settings(drafter))
    tokens, spent = 0, 0.0

    def count(round: Round) -> None:
        nonlocal tokens, spent
        if round.tree is None:
            return
        rows, nodes = round.tree.tokens.shape
        tokens += sum(len(e.tokens) for e in round.emitted)
        spent += costs.line.ms(rows * (nodes + round.side_nodes)) + round.draft_ms

    how: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "eos_token_ids": end_tokens(target.model.generation_config),
    }
    for at, prompt in enumerate(prompts):
        tell("texts", at, len(prompts), name)
        Session(target, wide, max_nodes=WIDE_NODES, costs=costs, guard=False).generate(
            [prompt], on_round=scores, **how
        )
        Session(target, drafter, costs=costs, guard=False).generate([prompt], on_round=count, **how)
    if not scores.claimed or not spent:
        raise ValueError(f"prompts: expected texts in which {name} drafts, got none")
    steps = costs.drafts[name_of(drafter)].step > 0
    return replace(
        known,
        rate=max(1.0, tokens * costs.line.ms(1) / spent),
        share=max(scores.right / scores.claimed, 0.01),
        step_gain=max(scores.gained / scores.held, 0.01) if steps else known.step_gain,
    )


def wide_settings(drafter: Drafter) -> dict[str, float]:
    """Return the settings with which a drafter proposes all that it can."""
    method = next(m for m in METHODS if type(drafter).__module__.endswith(f".{m}"))
    return {name: value for name, value in WIDE.items() if name in METHODS[method].settings}
