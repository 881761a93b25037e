"""What thresholds leave of the wide trees, for every number of steps and any capacity: sizes, and how much proves right."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bench.replay.positions import LENGTH, Array, Positions
from bench.replay.record import (
    FIXED_LOOKUP,
    FIXED_LOOKUP_LEAST,
    FIXED_SEARCH,
    LOOKUP,
    PLACES,
    STEPS,
    WIDTH,
)

MOST_NODES = 64


class Thresholds(NamedTuple):
    """What is proposed, whatever the capacity."""

    width: int = int(FIXED_SEARCH["beam_width"])
    search: float = FIXED_SEARCH["min_prob"]
    """Probability under which a beam is not verified."""
    lookup: float = FIXED_LOOKUP_LEAST
    """Probability under which a token of a place is not verified."""


class Drafts(NamedTuple):
    """Per position P and number of steps taken, 0 to STEPS."""

    size: Array
    """`[P, STEPS + 1]`, nodes beside the root, at most `MOST_NODES - 1`."""
    accepted: Array
    """`[P, STEPS + 1, MOST_NODES]`, how many of so many best nodes are right."""
    mass: Array
    """`[P, STEPS + 1]`, probability of the beams that a further step would continue."""
    best: Array
    """`[P, STEPS + 1]`, probability of the best of them."""


def lookup_scores(positions: Positions) -> Array:
    """Return cumulative log-probabilities `[P, PLACES, LENGTH]`, as lookup gives them."""
    follows = np.log(LOOKUP["follows"])
    at = positions.agreed[:, :, None] - 1 + np.arange(LENGTH)
    each = follows[at.clip(0, len(follows) - 1)]
    return each.cumsum(-1) + np.arange(PLACES)[:, None] * math.log(LOOKUP["later_place"])


def beams_alive(positions: Positions, width: int) -> Array:
    """Tell which of the wide search's beams `[P, STEPS, WIDTH]` one of this width has.

    A narrow search takes the best that continue its own beams; one that the wide search cut off is missing here.
    """
    alive = np.ones(positions.beam_score.shape, bool)
    for step in range(STEPS):
        if step:
            alive[:, step] = np.take_along_axis(alive[:, step - 1], positions.beam_parent[:, step], 1)  # fmt: skip
        alive[:, step] &= alive[:, step].cumsum(1) <= width
    return alive


def draft(positions: Positions, thresholds: Thresholds) -> Drafts:
    """Apply thresholds at every position."""
    count = len(positions.left)
    every = np.arange(count)
    beams = np.where(beams_alive(positions, thresholds.width), positions.beam_score, -np.inf)
    proposed = beams >= _log(thresholds.search)
    score = best_of_places(positions, thresholds.lookup)
    # Behind the text's last possible token no node is of use.
    useful = (positions.depth > 0) & (positions.depth <= positions.left[:, None] - 1)
    probability = np.exp(beams)
    size = np.zeros((count, STEPS + 1), np.int16)
    accepted = np.zeros((count, STEPS + 1, MOST_NODES), np.int8)
    for step in range(STEPS + 1):
        if step:
            for beam in range(WIDTH):
                rows = proposed[:, step - 1, beam]
                node = positions.beam_node[rows, step - 1, beam]
                found = beams[rows, step - 1, beam]
                score[every[rows], node] = np.maximum(score[every[rows], node], found)
        ranked = np.where(useful, score, -np.inf)
        order = np.argsort(-ranked, 1, kind="stable")[:, : MOST_NODES - 1]
        there = np.take_along_axis(ranked, order, 1) > -np.inf
        size[:, step] = there.sum(1)
        right = there & np.take_along_axis(positions.right, order, 1)
        accepted[:, step, 1:] = right.cumsum(1)
    first = np.ones((count, 1))
    return Drafts(
        size,
        accepted,
        np.concatenate([first, probability.sum(2)], 1),
        np.concatenate([first, probability.max(2)], 1),
    )


def best_of_beams(positions: Positions) -> Array:
    """Return the score that the wide search gives each node, `[P, K]`; no two of its beams are one node."""
    score = np.full(positions.depth.shape, -np.inf)
    every = np.arange(len(score))[:, None, None]
    score[every, positions.beam_node] = positions.beam_score
    return score


def best_of_places(positions: Positions, least: float = 0.0) -> Array:
    """Return the best score that lookup gives each node, `[P, K]`, of those with at least this probability."""
    score = np.full(positions.depth.shape, -np.inf)
    scores = lookup_scores(positions)
    proposed = (positions.place_node >= 0) & (scores >= _log(least))
    for place in range(FIXED_LOOKUP.places):
        for at in range(LENGTH):
            rows = np.flatnonzero(proposed[:, place, at])
            node = positions.place_node[rows, place, at]
            score[rows, node] = np.maximum(score[rows, node], scores[rows, place, at])
    return score


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf
