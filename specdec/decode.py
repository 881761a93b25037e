"""The round and the loop: draft, pack, verify, pick, accept, commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from specdec_kernels import accept_tree, pack_tree
from specdec_kernels.pack_tree import MAX_PROPOSALS

from .drafters.protocol import Budget, Drafter, Proposals
from .metrics import Stopwatch
from .model.passed import Verified
from .model.target import Target
from .pickers import Picker
from .state import Emitted, State
from .tree import Accepted, TokenTree


@torch.inference_mode()
def decode(
    target: Target,
    drafter: Drafter,
    picker: Picker,
    state: State,
    prefilled: Verified,
    *,
    nodes_of_rows: Callable[[int], int],
    clock: Stopwatch,
) -> Iterator[list[Emitted]]:
    """Write text, round by round, until every row has ended.

    The tokens are those that the picker takes from the target alone, whatever the drafter proposes.

    Args:
        target: the model that decides.
        drafter: the one that proposes.
        picker: takes tokens from what the target says.
        state: prompts, in the cache.
        prefilled: what the target said after each prompt.
        nodes_of_rows: most nodes verified per row in a round with so many rows.
        clock: collects the time of each stage.

    Yields:
        What each row gained, first from prefill, then from each round.
    """
    with clock("prefill"):
        last = TokenTree.chain(state.text[state.rows.ids, state.lengths - 1][:, None])
        first = picker.pick(state, last, prefilled.logits[:, None], offset=-1)
        emitted = state.open(first[:, 0], prefilled.hidden)
    with clock("draft"):
        drafter.start(state)
    yield emitted

    while state.rows.host:
        nodes = nodes_of_rows(len(state.remaining))
        deepest = min(max(state.remaining), nodes) - 1
        budget = Budget(nodes, deepest, state.left[state.rows.ids] - 1)
        with clock("draft"):
            proposals = drafter.draft(state, budget)
        with clock("pack"):
            tree = pack(state.roots, proposals, budget)
        with clock("verify"):
            verified = target.verify(tree, state.cache, state.rows, proposals.shallow)
        with clock("pick"):
            picked = picker.pick(state, tree, verified.logits)
        with clock("accept"):
            accepted = accept(tree, picked)
        with clock("commit"):
            written = state.write(tree, accepted, verified.hidden, proposals.valid.sum(1))
            state.cache.commit(accepted, state.rows)
        with clock("observe"):
            drafter.observe(state, tree, accepted, verified.hidden)
        with clock("emit"):
            emitted = state.advance(written)
        yield emitted


def pack(roots: Tensor, proposals: Proposals, budget: Budget) -> TokenTree:
    """Merge proposals into one tree per row: as wide as the widest row needs, or as there is room where a kernel packs."""
    # On a CPU it costs nothing to see that there is nothing to pack; elsewhere it would wait for the device.
    if proposals.tokens.shape[1] == 0 or (roots.device.type == "cpu" and not proposals.valid.any()):
        return TokenTree.chain(roots[:, None])
    packed = pack_tree(
        roots,
        proposals.tokens,
        proposals.parents,
        proposals.scores,
        capacity=budget.nodes,
        max_depth=budget.depth,
        source=proposals.source,
        valid=proposals.valid,
        row_depth=budget.row_depth,
        # The reference packs any number.
        impl="auto" if proposals.tokens.shape[1] <= MAX_PROPOSALS else "reference",
    )
    return TokenTree.from_packed(packed)


def accept(tree: TokenTree, picked: Tensor) -> Accepted:
    """Keep the longest path on which every token is what the target `picked [B, N]` at its parent."""
    return Accepted(
        *accept_tree(tree.tokens, tree.parents, tree.depth, tree.ancestors, tree.sizes, picked)
    )
