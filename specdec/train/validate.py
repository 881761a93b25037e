"""Validation: acceptance of a drafter's proposals on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence

from ..drafters.protocol import Drafter
from ..metrics import CTAR_WIDTHS, Metrics
from ..model.target import Target
from ..session import Session, end_tokens

NEW_TOKENS = 64


def acceptance(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[list[int]],
    *,
    max_nodes: int | None = None,
) -> dict[str, float]:
    """Decode prompts greedily and measure acceptance.

    Args:
        target: the target model.
        drafter: the drafter.
        prompts: token ids of each prompt.
        max_nodes: as in `Session`.

    Returns:
        `tokens_per_round`, `nodes_per_round`, and `ctar_1` to `ctar_6`: the share of rounds that accepted as many
        drafted tokens (Kangaroo section 4.1).
    """
    metrics = Metrics()
    session = Session(target, drafter, max_nodes=max_nodes)
    eos = end_tokens(target.model.generation_config)
    for prompt in prompts:
        metrics.add(
            session.generate([prompt], max_new_tokens=NEW_TOKENS, eos_token_ids=eos).metrics
        )
    return {
        "tokens_per_round": metrics.tokens_per_round,
        "nodes_per_round": metrics.nodes_per_round,
        **{f"ctar_{width}": metrics.ctar(width) for width in CTAR_WIDTHS},
    }
