"""What the formula must know of a method: how far its scores come true, and what a further step adds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.replay.drafts import Thresholds, best_of_beams, best_of_places
from bench.replay.policy import MASSES, SCORES, Fitted, Replay
from bench.replay.positions import Array
from bench.replay.record import STEPS
from bench.replay.tables import Table

# Where the search for them begins; each is replaced by what is measured.
BEGIN = Fitted(rate=2.0, search=0.8, lookup=1.0, step=0.2)
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
STEP_GAINS = (0.1, 0.15, 0.2, 0.25, 0.3)


def fit(replay: Replay, texts: Sequence[int], tables: Sequence[Table]) -> Fitted:
    """Measure everything on these texts, over all tables: a method has the same figures on every machine.

    What a step adds depends on how many of its nodes are verified after it; so of a few values the one is taken that
    writes fastest.
    """
    fitted = BEGIN
    for _ in range(2):
        roots = [replay.visited(texts, replay.computed(t, fitted)(1)) for t in tables]
        search, lookup = shares(replay, np.concatenate(roots))
        fitted = fitted._replace(search=search, lookup=lookup)
        tried = [fitted._replace(step=step) for step in STEP_GAINS]
        fitted = max(tried, key=lambda one: float(np.mean(np.log(rates(replay, texts, tables, one)))))  # fmt: skip
        fitted = fitted._replace(rate=float(np.mean(rates(replay, texts, tables, fitted))))
    return fitted


def rates(
    replay: Replay, texts: Sequence[int], tables: Sequence[Table], fitted: Fitted
) -> list[float]:
    """Say how fast the formula writes on each machine, relative to plain passes."""
    return [
        replay.write(texts, table, replay.computed(table, fitted)).rate
        / replay.write(texts, table, replay.plain).rate
        for table in tables
    ]


def shares(replay: Replay, roots: Array) -> tuple[float, float]:
    """Say which share of the search's and of lookup's raw scores comes true, over nodes about which a threshold decides."""
    positions = replay.positions
    useful = (positions.depth > 0) & (positions.depth <= positions.left[:, None] - 1)
    found = []
    for scores in (best_of_beams(positions), best_of_places(positions)):
        probability = np.where(useful, np.exp(scores), 0)[roots]
        decided = (probability >= SCORES[0]) & (probability < SCORES[1])
        right = positions.right[roots][decided].sum()
        found.append(float(right / probability[decided].sum()))
    return found[0], found[1]


def step_gain(replay: Replay, texts: Sequence[int], table: Table, fitted: Fitted) -> float:
    """Measure on one machine what steps add, per unit of the frontiers about which the step rule decides."""
    how = replay.computed(table, fitted)(1)
    drafts = how.drafts
    assert drafts is not None
    gained = mass = 0.0
    for at in replay.visited(texts, how):
        for step in range(1, STEPS):
            frontier = float(drafts.mass[at, step])
            if MASSES[0] <= frontier < MASSES[1]:
                before, behind = (
                    drafts.accepted[at, s, min(int(drafts.size[at, s]), how.nodes - 1)]
                    for s in (step, step + 1)
                )
                gained += int(behind) - int(before)
                mass += frontier
    return gained / mass


def right_by_rank(
    replay: Replay, texts: Sequence[int], table: Table, fitted: Fitted
) -> dict[int, float]:
    """Say in which share of rounds the n-th best node is right, by n: the mean of the ranks next to it."""
    roots = replay.visited(texts, replay.computed(table, fitted)(1))
    wide = replay.drafts(Thresholds(8, 0.0, 0.0)).accepted[roots, STEPS].mean(0)
    around = {n: (max(n - n // 4, 1), n + n // 4) for n in RANKS}
    return {
        n: float(wide[last] - wide[first - 1]) / (last - first + 1)
        for n, (first, last) in around.items()
    }


def oracle(replay: Replay, texts: Sequence[int], table: Table) -> float:
    """Say how fast texts could be written, in tokens per ms, if it were known what to ask and what will be right."""
    positions, wide = replay.positions, 8
    with_lookup = replay.drafts(Thresholds(wide, 0.0, 0.0)).accepted[:, :, -1]
    without = replay.drafts(Thresholds(wide, 0.0, 2.0)).accepted[:, :, -1]
    tokens, ms = 0, 0.0
    for text in texts:
        start, end = (int(place) for place in positions.starts[text : text + 2])
        least = [0.0] * (end - start + 1)  # ms from each position to the end of the text
        for at in range(end - 1, start - 1, -1):
            ways = []
            for steps in range(STEPS + 1):
                searched = table.search + steps * table.step if steps else 0.0
                for right, asked in ((with_lookup, table.lookup), (without, 0.0)):
                    for nodes in range(min(int(right[at, steps]), end - at - 1) + 1):
                        passed = float(table.times[nodes + 1])
                        ways.append(passed + searched + asked + least[at + nodes + 1 - start])
            least[at - start] = min(ways)
        tokens, ms = tokens + end - start, ms + least[0]
    return tokens / ms
