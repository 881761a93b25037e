"""Measures a cost table: the target's passes after a short text, and drafts in a few rounds of decoding."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count, islice
from math import ceil
from typing import NamedTuple

import numpy as np
import torch

from ..decode import decode
from ..drafters.mixed import MixedDrafter
from ..drafters.protocol import Budget, DraftCost, Drafter, Proposals
from ..host.progress import Show
from ..limits import DEFAULT_NODES
from ..metrics import Metrics
from ..model.cache import Rows
from ..model.passed import Verified
from ..model.target import Target
from ..observer import OnRound, Round
from ..pickers import Greedy
from ..prompts import Prompts
from ..state import Emitted, State
from ..text import Text
from ..tree import Accepted, TokenTree
from .spending import Spending
from .table import Costs, keep, known_costs, machine_of, name_of, parts_of

NODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Sizes of the timed passes, in nodes."""
PROMPT = 64
SECONDS = 2.0
"""Least seconds of timing passes; every size is timed at least twice."""
# Ratio of times of equal passes from which the machine counts as busy; times of a busy machine are not kept on disk.
STEADY = 1.25
# Numbers of steps of the timed drafts; from two numbers follow the fixed cost and the cost per step.
DEPTHS = (1, 4)
ROUNDS = 6


def costs_of(target: Target, drafter: Drafter) -> Costs:
    """Return the cost table of a target and a drafter on this machine; missing times are measured.

    Measuring passes takes about two seconds if a step takes 20 ms. The table is kept on disk unless the machine was
    busy. A stored table whose passes are slower than the machine is now was measured while it was busy: it is measured again.

    Args:
        target: the target; its passes are timed.
        drafter: its drafts are timed.
    """
    threads = torch.get_num_threads()
    parts = [part for part in parts_of(drafter) if part.calibration is not None]

    def missing(costs: Costs) -> list[Drafter]:
        return [part for part in parts if name_of(part) not in costs.drafts]

    known: Costs | None = target.costs.get(threads)
    if known is not None and not missing(known):
        return known
    stored = known_costs(target)
    if known is None and stored is not None and single_pass(target) * STEADY < stored.passes[0][1]:
        stored = None
    known, steady = known or stored, stored is not None
    if known is None:
        passes = measure_passes(target)
        steady = passes.spread < STEADY
        known = Costs(passes.points, tree=measure_tree(target), machine=machine_of(target))
    if unknown := missing(known):
        known = replace(known, drafts=dict(known.drafts) | measure_drafts(target, unknown))
        steady = steady and single_pass(target) < STEADY * known.passes[0][1]
    if steady and known != stored:
        keep(known, target)
    target.costs[threads] = known
    return known


def tuned(target: Target, drafter: Drafter, seconds: float, show: Show) -> tuple[Costs, float]:
    """Measure the table again for `seconds` and keep it with other drafters' times. Returns the spread of passes too."""
    passes = measure_passes(target, seconds, show)
    known = known_costs(target)
    drafts = {} if known is None else dict(known.drafts)
    drafts |= measure_drafts(target, parts_of(drafter), 4 * ROUNDS)
    costs = Costs(passes.points, drafts, measure_tree(target, 4 * ROUNDS), machine_of(target))
    keep(costs, target)
    target.costs[torch.get_num_threads()] = costs
    return costs, passes.spread


class Passes(NamedTuple):
    """Measured times of passes."""

    points: tuple[tuple[int, float], ...]
    """Nodes and milliseconds, the lower quartile as in `_typical`."""
    spread: float
    """Ratio of upper to lower quartile of one size's times, the median over sizes."""


def single_pass(target: Target) -> float:
    """Return the milliseconds of a pass over one node, the faster of two."""
    return measure_passes(target, 0.0, sizes=NODES[:1]).points[0][1]


@torch.inference_mode()
def measure_passes(
    target: Target,
    seconds: float = SECONDS,
    show: Show | None = None,
    *,
    sizes: Sequence[int] = NODES,
) -> Passes:
    """Time passes of all sizes, alternating."""
    prompt = torch.tensor([_prompt(target)], device=target.device)
    length = prompt.shape[1]
    cache = target.new_cache(rows=1, capacity=length, tree_capacity=max(sizes))
    target.prefill(prompt, [length], cache)
    rows = Rows.first(1, target.device)
    chains = [
        TokenTree.chain(torch.ones(1, nodes, dtype=torch.int64, device=target.device))
        for nodes in sizes
        if length + nodes <= target.position_limit
    ]
    times: list[list[float]] = [[] for _ in chains]
    target.verify(chains[-1], cache, rows)
    began = time.perf_counter()
    for turn in count():
        spent = time.perf_counter() - began
        if turn > 1 and spent >= seconds:
            break
        if show is not None:
            show("passes", min(ceil(spent), ceil(seconds)), ceil(seconds), "seconds")
        for chain, found in zip(chains, times, strict=True):
            _wait(target)
            start = time.perf_counter()
            target.verify(chain, cache, rows)
            _wait(target)
            found.append(1e3 * (time.perf_counter() - start))
    low, high = np.quantile(np.array(times), (0.25, 0.75), axis=1, method="nearest")
    timed = (chain.tokens.shape[1] for chain in chains)
    points = tuple(zip(timed, map(float, low), strict=True))
    return Passes(points, float(np.median(high / low)))


def measure_drafts(
    target: Target, drafters: Sequence[Drafter], rounds: int = ROUNDS
) -> dict[str, DraftCost]:
    """Time drafts of one and of several steps. Each drafter is timed separately; drafters that can share trees share rounds."""
    if len(drafters) > 1:
        timed = [Timed(drafter) for drafter in drafters]
        _decode(target, MixedDrafter(timed), 2 + 2 * rounds)
    else:
        timed = [Timed(drafters[0])]
        _decode(target, timed[0], 2 + 2 * rounds)
    return {name_of(each.drafter): each.cost() for each in timed}


def measure_tree(target: Target, rounds: int = ROUNDS) -> float:
    """Return the milliseconds that a tree adds to a round besides its pass, from alternating rounds with and without one."""
    found: tuple[list[float], list[float]] = [], []

    def listen(round: Round) -> None:
        if round.tree is not None:
            others = sum(
                s for stage, s in round.seconds.items() if stage not in ("draft", "verify")
            )
            found[round.tree.tokens.shape[1] > 1].append(1e3 * others)

    _decode(target, _Chains(), 2 * rounds, listen)
    without, with_tree = (_typical(times[1:]) for times in found)
    return max(0.0, with_tree - without)


class _Chains(Drafter):
    """Proposes four tokens in every other round, and nothing in the rest."""

    turn = 0

    def draft(self, state: State, budget: Budget) -> Proposals:
        self.turn += 1
        length = min(4, budget.depth) if self.turn % 2 else 0
        chain = torch.arange(length, device=state.text.ids.device)[None]
        sure = torch.zeros(chain.shape, device=chain.device)
        return Proposals(torch.zeros_like(chain), chain - 1, sure, sure == 0, chain)


class Timed(Drafter):
    """Wraps a drafter and times its `draft` and `observe`."""

    def __init__(self, drafter: Drafter) -> None:
        """Wrap a drafter."""
        self.drafter = drafter
        self.tap, self.side_nodes = drafter.tap, drafter.side_nodes
        self.listener = drafter.listener
        self.times: list[tuple[float, float]] = []
        """Steps and milliseconds."""

    def start(self, state: State) -> None:
        """Start the drafter."""
        self.drafter.start(state)

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Time a draft. The budget prices a step at one millisecond, so that `spent` is the number of steps."""
        budget = budget._replace(costs={self.drafter: DraftCost(0.0, 1.0)})
        began = time.perf_counter()
        proposals = self.drafter.draft(state, budget)
        self.times.append((proposals.spent, 1e3 * (time.perf_counter() - began)))
        return proposals

    def observe(
        self, state: State, tree: TokenTree, accepted: Accepted, verified: Verified
    ) -> None:
        """Add the time of `observe` to the draft's."""
        began = time.perf_counter()
        self.drafter.observe(state, tree, accepted, verified)
        steps, spent = self.times[-1]
        self.times[-1] = steps, spent + 1e3 * (time.perf_counter() - began)

    def cost(self) -> DraftCost:
        """Return the fixed and the step cost, without the first two drafts, which are warm-up."""
        by_steps: dict[float, list[float]] = {}
        for steps, spent in self.times[2:]:
            by_steps.setdefault(steps, []).append(spent)
        (few, first), (many, last) = (
            (steps, _typical(by_steps[steps])) for steps in (min(by_steps), max(by_steps))
        )
        step = max(0.0, (last - first) / (many - few)) if many > few else 0.0
        return DraftCost(max(0.0, first - few * step), step)


class _Turns(Spending):
    """Budgets without prices that alternate between one step and several."""

    turn = 0

    def budget(self, state: State) -> Budget:
        self.turn += 1
        depth = min(DEPTHS[self.turn % 2], max(state.remaining) - 1)
        return Budget(DEFAULT_NODES, depth, state.row_depth, width=4)

    def count(self, proposals: Proposals, tree: TokenTree, emitted: list[Emitted]) -> None:
        """Do nothing: there is no guard."""


def _decode(target: Target, drafter: Drafter, rounds: int, on_round: OnRound | None = None) -> None:
    """Decode for `rounds` rounds, or until the model's positions end."""
    new = rounds * (1 + max(DEPTHS))
    prompt, nodes = _prompt(target), DEFAULT_NODES + drafter.side_nodes
    if drafter.listener is not None:
        nodes = max(nodes, drafter.listener.nodes)
    limit = min(new, target.position_limit - len(prompt))
    cache = target.new_cache(rows=1, capacity=len(prompt) + limit, tree_capacity=nodes)
    text = Text([prompt], [limit], margin=DEFAULT_NODES + 1, device=target.device)
    state = State(cache, text, eos_token_ids=frozenset())
    turns = _Turns(drafter, None, layers=1)
    written = decode(
        target, drafter, Greedy(), state, Prompts(state), spending=turns, metrics=Metrics(), on_round=on_round
    )  # fmt: skip
    for _ in islice(written, 1 + rounds):
        pass


def _prompt(target: Target) -> list[int]:
    """Make a text with repetitions, for drafters that look them up."""
    length = max(1, min(PROMPT, target.position_limit // 2))
    return [(at % 16) ** 2 % target.config.vocab_size for at in range(length)]


def _typical(times: Sequence[float]) -> float:
    """Return the lower quartile: other work on the machine only adds time."""
    return float(np.quantile(times, 0.25, method="nearest"))


def _wait(target: Target) -> None:
    """Wait until the device is idle."""
    if target.device.type != "cpu":
        torch.accelerator.synchronize(target.device)
