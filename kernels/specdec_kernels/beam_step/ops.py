"""The public function `beam_step` and its registered op."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_float32, check_integers, check_shape
from ..dispatch import Impl, chooses_kernel, register
from .reference import Beams, beam_step_reference

# Most candidates per row that the kernel holds in registers: 64 continuations of each of 64 beams.
MAX_CANDIDATES = 4096


def beam_step(
    scores: Tensor, log_probs: Tensor, ids: Tensor, width: int, *, impl: Impl = "auto"
) -> Beams:
    """Choose the next beams (ReDrafter section 3.2).

    Args:
        scores: `[B, W]` float32, cumulative log-probabilities of the beams.
        log_probs: `[B, W, K]` float32, of each beam's K most likely next tokens.
        ids: `[B, W, K]` int64, ids of these tokens.
        width: most beams kept; the result has `min(width, W * K)`.
        impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere). The kernel takes up to 4096
            candidates per row.

    Returns:
        Scores, parents and tokens of the next beams.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, `width`, a device or `impl` does not fit.
    """
    if ids.ndim != 3 or 0 in ids.shape[1:]:
        raise ValueError(f"ids: expected shape [B, W >= 1, K >= 1], got {list(ids.shape)}")
    check_shape("log_probs", log_probs, ids.shape)
    check_shape("scores", scores, ids.shape[:2])
    check_integers(ids=ids)
    if width < 1:
        raise ValueError(f"width: expected at least 1, got {width}")
    if not chooses_kernel(impl, scores, log_probs, ids):
        return beam_step_reference(scores, log_probs, ids, width)
    check_float32(scores=scores, log_probs=log_probs)
    if ids.shape[1] * ids.shape[2] > MAX_CANDIDATES:
        raise ValueError(
            f"ids: expected at most {MAX_CANDIDATES} candidates in a kernel, got shape {list(ids.shape)}"
        )
    return Beams(*_beam_step(scores, log_probs, ids, width))


def _launch(
    scores: Tensor, log_probs: Tensor, ids: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    from .kernel import launch_beam_step

    return launch_beam_step(scores, log_probs, ids, width)


def _fake(
    scores: Tensor, log_probs: Tensor, ids: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, beams, count = ids.shape
    steps = min(width, beams * count)
    return (
        scores.new_empty((batch, steps)),
        ids.new_empty((batch, steps)),
        ids.new_empty((batch, steps)),
    )


_beam_step = register(
    "beam_step(Tensor scores, Tensor log_probs, Tensor ids, int width)"
    " -> (Tensor best, Tensor parents, Tensor tokens)",
    _launch,
    _fake,
)
