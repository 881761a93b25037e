"""The round and the loop: draft, pack, verify, accept, commit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from specdec_kernels import accept_tree, pack_tree
from specdec_kernels.pack_tree import MOST_PROPOSALS

from .drafters.protocol import Budget, Drafter, Proposals
from .metrics import Stopwatch
from .state import Emitted, State
from .target import Target, Verified
from .tree import Accepted, TokenTree


@torch.inference_mode()
def decode(
    target: Target,
    drafter: Drafter,
    state: State,
    prefilled: Verified,
    *,
    max_nodes: int,
    clock: Stopwatch,
) -> Iterator[list[Emitted]]:
    """Write text greedily, round by round, until every row has ended.

    The tokens are those of the target alone, whatever the drafter proposes (ReDrafter section 3.1).

    Args:
        target: the model that decides.
        drafter: the one that proposes.
        state: prompts, in the cache.
        prefilled: what the target said after each prompt.
        max_nodes: most nodes verified per row and round.
        clock: collects the time of each stage.

    Yields:
        What each row gained, first from prefill, then from each round.
    """
    with clock("prefill"):
        emitted = state.open(pick(prefilled.logits), prefilled.hidden)
    with clock("draft"):
        drafter.start(state)
    yield emitted

    while state.rows.host:
        row_depth = torch.tensor(state.remaining, device=state.text.device) - 1
        budget = Budget(max_nodes, min(max(state.remaining), max_nodes) - 1, row_depth)
        with clock("draft"):
            proposals = drafter.draft(state, budget)
        with clock("pack"):
            tree = pack(state.roots, proposals, budget)
        with clock("verify"):
            verified = target.verify(tree, state.cache, state.rows, proposals.shallow)
            picked = pick(verified.logits)
        with clock("accept"):
            accepted = accept(tree, picked)
        with clock("commit"):
            proposed = proposals.valid.sum(1) + 1
            written = state.write(tree, accepted, verified.hidden, proposed)
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
        impl="auto" if proposals.tokens.shape[1] <= MOST_PROPOSALS else "reference",
    )
    return TokenTree.from_packed(packed)


def accept(tree: TokenTree, picked: Tensor) -> Accepted:
    """Keep the longest path on which every token is what the target `picked [B, N]` at its parent."""
    return Accepted(
        *accept_tree(tree.tokens, tree.parents, tree.depth, tree.ancestors, tree.sizes, picked)
    )


def pick(logits: Tensor) -> Tensor:
    """Take the most likely token of `[..., V]` logits, the lowest id among equals."""
    return logits.max(-1).indices  # the same as argmax, which is five times slower in bf16 on CPUs
