"""Coupled drafting: where the target draws with known noise, the drafter ranks its tokens with the same noise.

The target's token is the best of log p / T + noise. What a drafter knows of it is log q; so the tokens that are
likely to be drawn *here* are the best of log q / T + noise, however unlikely they are on the whole.
"""

from __future__ import annotations

from torch import Tensor

from specdec_kernels import coupled_log_probs
from specdec_kernels.dispatch import Impl

from ...state import State

CANDIDATES = 32
"""Tokens that noise may lift: so many of the drafter's likeliest."""
SHARPNESS = 0.85
"""How far the drafter's ranking is trusted: exp(sharpness * (log q / T + noise)), normalised, is what it gives a token
of being drawn. Of 0.5 to 2.5, 0.7 and 1 were expected to write fastest on 18 development questions (all but the benchmark's), at T 0.7 and
1; it decides what is worth verifying, never the text."""


def coupled(
    log_probs: Tensor, ids: Tensor, *, state: State, depth: int, impl: Impl = "auto"
) -> Tensor:
    """Turn a drafter's log-probabilities into those of being the token that the target draws.

    Args:
        log_probs: `[B, W, k]` float32, of the k likeliest tokens after each of W beams.
        ids: `[B, W, k]` int64, these tokens.
        state: whose rows draw with `state.sampling`.
        depth: of the nodes that these tokens follow; 0 for the root.
        impl: as in `coupled_log_probs`.

    Returns:
        `[B, W, k]` float32; those of a beam sum to 1.
    """
    sampling = state.sampling
    assert sampling is not None
    return coupled_log_probs(
        log_probs,
        ids,
        seed=sampling.seed,
        streams=sampling.streams[state.rows.ids],
        positions=state.position_after(depth),
        temperature=sampling.temperature,
        sharpness=SHARPNESS,
        impl=impl,
    )
