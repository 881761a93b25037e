"""A drafter's log-probabilities that the target samples each candidate, given the target's noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pick_tokens.noise import gumbel_noise


def coupled_log_probs_reference(
    log_probs: Tensor,
    ids: Tensor,
    seed: int,
    streams: Tensor,
    positions: Tensor,
    temperature: float,
    sharpness: float,
) -> Tensor:
    """Reference implementation; arguments as in `coupled_log_probs`, checked."""
    noise = gumbel_noise(seed, streams[:, None, None], positions[:, None, None], ids)  # [B, W, k]
    scores = sharpness * (log_probs / temperature + noise)
    # Without this, beams with only -inf would become NaN.
    return torch.log_softmax(scores, -1).masked_fill(scores == -torch.inf, -torch.inf)
