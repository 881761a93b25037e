"""The public function: checks its arguments, then runs the reference."""

from __future__ import annotations

from torch import Tensor

from .reference import Beams, beam_step_reference


def beam_step(scores: Tensor, log_probs: Tensor, ids: Tensor, width: int) -> Beams:
    """Choose the next beams (ReDrafter section 3.2).

    Args:
        scores: `[B, W]` float32, cumulative log-probabilities of the beams.
        log_probs: `[B, W, K]` float32, of each beam's K likeliest next tokens.
        ids: `[B, W, K]` int64, these tokens.
        width: most beams kept; there are `min(width, W * K)`.

    Returns:
        Scores, parents and tokens of the next beams.

    Raises:
        ValueError: if shapes do not fit or `width` is below 1.
    """
    if ids.ndim != 3 or log_probs.shape != ids.shape or scores.shape != ids.shape[:2]:
        raise ValueError(
            "scores, log_probs, ids: expected shapes [B, W], [B, W, K], [B, W, K], "
            f"got {list(scores.shape)}, {list(log_probs.shape)}, {list(ids.shape)}"
        )
    if width < 1:
        raise ValueError(f"width: expected at least 1, got {width}")
    return beam_step_reference(scores, log_probs, ids, width)
