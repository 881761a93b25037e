"""Settings judged on texts that they were not chosen on: each half of the texts by what the other half said."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from bench.replay.drafts import Thresholds
from bench.replay.measure import oracle
from bench.replay.policy import Fitted, Fixed, Replay
from bench.replay.tables import Table, noisy, steeper
from bench.replay.walk import Settings, Written
from specdec.costs.line import CostLine

Choose = Callable[[Sequence[int], Table], Settings]
"""Chooses settings on some texts."""

BATCHES = tuple(itertools.product((4, 8), (False, True)))
SEEDS, NOISE = 30, 0.2


class Half(NamedTuple):
    """Texts to choose on, what was measured on them, and texts to judge by."""

    chosen_on: Sequence[int]
    fitted: Fitted
    judged_on: Sequence[int]


def single_settings() -> Iterator[Fixed]:
    """Give the fixed settings that single rows are compared with."""
    for width, search, step, nodes in itertools.product(
        (4, 8), (0.2, 0.1, 0.05, 0.02, 0.005), (0.2, 0.4, 0.6, 0.8), (8, 16, 32, 64)
    ):
        yield Fixed(Thresholds(width, search, 0.8 * search), step, nodes)


def batch_settings() -> Iterator[Fixed]:
    """Give the fixed pairs, of a pass and of a row, that batches are compared with."""
    for width, search, nodes, least in itertools.product(
        (4, 8), (0.2, 0.1, 0.05, 0.02), (8, 12, 16, 24, 32, 64, 128, 256), (2, 3, 4)
    ):
        yield Fixed(Thresholds(width, search, 0.8 * search), 0.4, nodes, least)


def single_rows(replay: Replay, table: Table, halves: Sequence[Half]) -> dict[str, Any]:
    """Compare settings of single rows on one machine; rates are relative to plain passes."""
    found = _judged(replay, table, halves, list(single_settings()), 1, False)
    found["oracle"] = [
        oracle(replay, half.judged_on, table) / _rate(replay, half, table, replay.plain)
        for half in halves
    ]
    return found


def batch(
    replay: Replay, table: Table, halves: Sequence[Half], rows: int, refill: bool
) -> dict[str, Any]:
    """Compare settings of batches on one machine; rates are relative to plain passes of such batches."""
    pairs = list(batch_settings())
    return {"rows": rows, "refill": refill} | _judged(replay, table, halves, pairs, rows, refill)


def _judged(
    replay: Replay, table: Table, halves: Sequence[Half], grid: list[Fixed], rows: int, refill: bool
) -> dict[str, Any]:
    def write(texts: Sequence[int], settings: Settings) -> Written:
        return replay.write(texts, table, settings, rows=rows, refill=refill)

    found: dict[str, list[float]] = {"today": [], "fixed": [], "computed": []}
    together = {name: Written() for name in ("plain", *found)}
    chosen = []
    for half in halves:
        best = max(grid, key=lambda fixed: write(half.chosen_on, replay.fixed(fixed)).rate)
        chosen.append([*best.thresholds, best.step_mass, best.nodes, best.least])
        settings: dict[str, Settings] = {
            "plain": replay.plain,
            "today": replay.today(table),
            "fixed": replay.fixed(best),
            "computed": replay.computed(table, half.fitted),
        }
        written = {name: write(half.judged_on, how) for name, how in settings.items()}
        for name, one in written.items():
            together[name].tokens += one.tokens
            together[name].ms += one.ms
            if name in found:
                found[name].append(one.rate / written["plain"].rate)
    plain = together.pop("plain")
    both = {name: one.rate / plain.rate for name, one in together.items()}
    return {"each": found, "both": both, "chosen": chosen}


def _rate(replay: Replay, half: Half, table: Table, settings: Settings) -> float:
    return replay.write(half.judged_on, table, settings).rate


def disturbed(replay: Replay, table: Table, half: Half) -> dict[str, float]:
    """Say what remains of the computed settings' rate where what they are computed from is wrong."""

    def share(fitted: Fitted, line: CostLine) -> float:
        return _rate(replay, half, table, replay.computed(table, fitted, line)) / right

    line, fitted = table.line(), half.fitted
    right = _rate(replay, half, table, replay.computed(table, fitted))
    noise = [
        share(fitted, CostLine.fit(noisy(table.points(), NOISE, seed))) for seed in range(SEEDS)
    ]
    guarded = replay.write(half.judged_on, table, replay.computed(table, fitted), guarded=True)
    unguarded = replay.write(half.judged_on, table, replay.computed(table, fitted))
    replay.drafts.cache_clear()
    return {
        "guarded": guarded.rate / unguarded.rate,
        "noise": sum(noise) / len(noise),
        "noise_worst": min(noise),
        "slope_lower": share(fitted, steeper(line, 0.8)),
        "slope_higher": share(fitted, steeper(line, 1.2)),
        "rate_halved": share(fitted._replace(rate=fitted.rate / 2), line),
        "rate_doubled": share(fitted._replace(rate=fitted.rate * 2), line),
    }


def points(replay: Replay, table: Table, texts: Sequence[int], fitted: Fitted) -> dict[str, Any]:
    """Give nodes per round and rate of every setting on all texts, for a picture."""
    plain = replay.write(texts, table, replay.plain).rate

    def point(settings: Settings) -> list[float]:
        written = replay.write(texts, table, settings)
        return [round(written.nodes / written.rounds, 2), round(written.rate / plain, 4)]

    return {
        "fixed": [point(replay.fixed(fixed)) for fixed in single_settings()],
        "today": point(replay.today(table)),
        "computed": point(replay.computed(table, fitted)),
    }
