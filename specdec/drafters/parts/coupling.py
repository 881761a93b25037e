"""Coupled drafting: when the target samples, the drafter ranks its tokens with the target's noise.

The target's token maximises log p / T + noise. The drafter approximates log p by log q, so the tokens that the target
is likely to sample at this position maximise log q / T + noise.
"""

from __future__ import annotations

from torch import Tensor

from specdec_kernels import coupled_log_probs
from specdec_kernels.dispatch import Impl

from ...state import State

CANDIDATES = 32
"""The drafter's most likely tokens, in number, that are ranked with noise."""
SHARPNESS = 0.85
"""Sharpness of the acceptance estimate: a token's probability of being sampled is exp(sharpness * (log q / T + noise)),
normalised. Of values from 0.5 to 2.5, 0.7 and 1 had the highest expected speed on 18 development questions (none of the
benchmark's) at temperatures 0.7 and 1. It decides which nodes are verified, never the text."""


def coupled(
    log_probs: Tensor, ids: Tensor, *, state: State, depth: int, impl: Impl = "auto"
) -> Tensor:
    """Turn a drafter's log-probabilities into log-probabilities that the target samples each token.

    Args:
        log_probs: `[B, W, k]` float32, of the k most likely tokens after each of W beams.
        ids: `[B, W, k]` int64, the tokens.
        state: the rows; they sample with `state.sampling`.
        depth: depth of the nodes that these tokens follow; 0 for the root.
        impl: as in `coupled_log_probs`.

    Returns:
        `[B, W, k]` float32; the probabilities of a beam sum to 1.
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
