"""The decoding loop; each round drafts, packs, verifies, picks, accepts and commits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from specdec_kernels import accept_tree, pack_tree
from specdec_kernels.dispatch import host_may_look
from specdec_kernels.pack_tree import MAX_PROPOSALS

from .costs.spending import Spending
from .drafters.protocol import Budget, Drafter, Proposals
from .metrics import Metrics
from .model.cache import Rows
from .model.target import Target
from .observer import OnRound, Round
from .pickers import Picker
from .prompts import Prompts
from .state import Emitted, State
from .tree import Accepted, TokenTree


@torch.inference_mode()
def decode(
    target: Target,
    drafter: Drafter,
    picker: Picker,
    state: State,
    prompts: Prompts,
    *,
    spending: Spending,
    metrics: Metrics,
    on_round: OnRound | None = None,
) -> Iterator[list[Emitted]]:
    """Generate round by round until every row has ended.

    The picker chooses every token from the target's logits; the drafter has no influence on the tokens.

    Args:
        target: the target model.
        drafter: proposes tokens.
        picker: chooses tokens from the target's logits.
        state: the rows.
        prompts: the rows' prompts, read as cache rows become free.
        spending: sets the budget of each round, and records its result.
        metrics: counts and stage times are added to it.
        on_round: called after each prefill and each round.

    Yields:
        The new tokens of each row, per prefill and per round.
    """
    # A caller's drafter need not inherit from `Drafter`.
    listener = getattr(drafter, "listener", None)
    layers = () if listener is None else listener.layers
    while state.rows.host or prompts.waiting:
        if prompts.may_begin:  # at the start, and after rows have ended
            emitted = begin(target, drafter, picker, state, prompts, metrics)
            metrics.count(emitted)
            if on_round is not None:
                on_round(Round(emitted, metrics.lap()))
            yield emitted
            continue
        budget = spending.budget(state)
        with metrics.stage("draft"):
            proposals = drafter.draft(state, budget)
        with metrics.stage("pack"):
            tree = pack(state.roots, proposals, budget)
        with metrics.stage("verify"):
            verified = target.verify(
                tree, state.cache, state.rows, proposals.shallow, proposals.side, layers
            )
        with metrics.stage("pick"):
            picked = picker.pick(state, tree, verified.logits)
        with metrics.stage("accept"):
            accepted = accept(tree, picked)
        with metrics.stage("commit"):
            written = state.write(tree, accepted, verified, proposals.valid.sum(1))
            state.cache.commit(accepted, state.rows)
        with metrics.stage("observe"):
            drafter.observe(state, tree, accepted, verified)
        with metrics.stage("emit"):
            emitted = state.advance(written)
        spending.count(proposals, tree, emitted)
        metrics.count(emitted)
        if on_round is not None:
            side = 0 if proposals.side is None else proposals.side.tokens.shape[1]
            lap = metrics.lap()
            on_round(Round(emitted, lap, tree, picked, accepted, side, proposals.spent))
        yield emitted


def begin(
    target: Target,
    drafter: Drafter,
    picker: Picker,
    state: State,
    prompts: Prompts,
    metrics: Metrics,
) -> list[Emitted]:
    """Prefill waiting prompts into free cache rows, and pick their first tokens."""
    first = not prompts.begun
    with metrics.stage("prefill"):
        said = prompts.read(target, drafter.tap, getattr(drafter, "listener", None))
        picked = picker.pick(state, TokenTree.chain(state.roots[:, None]), said.logits[:, None])
        emitted = state.open(picked[:, 0], said)
    with metrics.stage("draft"):
        joining = [e.row for e in emitted if not e.finished]
        if first:
            drafter.start(state)
        elif joining:
            drafter.join(state, Rows.of(joining, state.text.ids.device))
    return emitted


def pack(roots: Tensor, proposals: Proposals, budget: Budget) -> TokenTree:
    """Merge proposals into one tree per row, as wide as the widest row, or as the budget where a kernel packs."""
    if proposals.tokens.shape[1] == 0 or (host_may_look(roots) and not proposals.valid.any()):
        return TokenTree.chain(roots[:, None])
    valid = proposals.valid
    if budget.row_nodes is not None:
        valid = likeliest(proposals, budget.row_nodes - 1)
    packed = pack_tree(
        roots,
        proposals.tokens,
        proposals.parents,
        proposals.scores,
        capacity=budget.nodes,
        max_depth=budget.depth,
        source=proposals.source,
        valid=valid,
        row_depth=budget.row_depth,
        # The reference has no limit.
        impl="auto" if proposals.tokens.shape[1] <= MAX_PROPOSALS else "reference",
    )
    return TokenTree.from_packed(packed)


def likeliest(proposals: Proposals, most: Tensor) -> Tensor:
    """Mark each row's `most [B]` best proposals, `[B, K]` bool; among equal scores parents come before children."""
    scores = proposals.scores.masked_fill(~proposals.valid, -torch.inf)
    best = scores.sort(dim=1, descending=True, stable=True).indices
    kept: Tensor = proposals.valid & (best.argsort(1) < most[:, None])
    return kept


def accept(tree: TokenTree, picked: Tensor) -> Accepted:
    """Accept the longest path on which every token equals the target's token `picked [B, N]` at its parent."""
    return Accepted(
        *accept_tree(tree.tokens, tree.parents, tree.depth, tree.ancestors, tree.sizes, picked)
    )
