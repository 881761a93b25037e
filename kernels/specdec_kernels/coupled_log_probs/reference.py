"""A drafter's log-probabilities, given the noise that the target draws with: what is likely to be drawn here."""

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
    """Couple; arguments as in `coupled_log_probs`, checked."""
    noise = gumbel_noise(seed, streams[:, None, None], positions[:, None, None], ids)  # [B, W, k]
    scores = sharpness * (log_probs / temperature + noise)
    # Beams of nothing but -inf would be NaN.
    return torch.log_softmax(scores, -1).masked_fill(scores == -torch.inf, -torch.inf)
