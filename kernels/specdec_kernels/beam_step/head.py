"""`lm_head_beams`: a draft step's head and the choice of the next beams, as one op of two launches.

The first launch is that of `lm_head_topk`; the second merges the lists of all beams of a row at once
(`lm_head/merge.py`), so neither logits nor tokens per beam are written.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..checks import check_float32, check_shape
from ..dispatch import Impl, register
from ..lm_head.ops import MAX_TOKENS, check_head, options_of
from ..lm_head.reference import lm_head_topk_reference
from ..lm_head.weights import HeadWeights, as_head
from .reference import Beams, beam_step_reference

MAX_BEAMS = 64


def lm_head_beams(
    hidden: Tensor,
    head: HeadWeights | Tensor,
    scores: Tensor,
    width: int,
    *,
    impl: Impl = "auto",
    **options: Any,
) -> Beams:
    """Choose the next beams from the head's inputs: `lm_head_topk`, then `beam_step`.

    Args:
        hidden: `[B, W, E]`, the head's input for each beam.
        head: the head, or the weight `[V, E]` of a head without other fields.
        scores: `[B, W]` float32, cumulative log-probabilities of the beams.
        width: most beams kept, 1 to 64; the result has `min(width, W * V)`.
        impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere). The kernel takes up to 64
            beams.
        options: deprecated: other fields of the head.

    Returns:
        Scores, parents and tokens of the next beams.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, a stride, `width`, a device or `impl` does not fit.
    """
    head = as_head(head, options)
    if hidden.ndim != 3 or hidden.shape[1] < 1:
        raise ValueError(f"hidden: expected shape [B, W >= 1, E], got {list(hidden.shape)}")
    check_shape("scores", scores, hidden.shape[:2])
    if not 1 <= width <= MAX_TOKENS:
        raise ValueError(f"width: expected 1 to {MAX_TOKENS}, got {width}")
    batch, beams = scores.shape
    rows = rearrange(hidden, "b w e -> (b w) e")
    if check_head(rows, head, impl, scores):
        check_float32(scores=scores)
        if beams > MAX_BEAMS:
            raise ValueError(f"scores: expected at most {MAX_BEAMS} beams in a kernel, got {beams}")
        return Beams(*_lm_head_beams(rows, head.weight, scores, width, *options_of(head)))
    top = lm_head_topk_reference(rows, head, min(width, len(head.weight)))
    ids, log_probs = (rearrange(x, "(b w) k -> b w k", b=batch) for x in (top.ids, top.log_probs))
    return beam_step_reference(scores, log_probs, ids, width)


def _launch(
    hidden: Tensor,
    weight: Tensor,
    scores: Tensor,
    width: int,
    bias: Tensor | None,
    logit_scale: float | None,
    softcap: float | None,
    round_to: torch.dtype | None,
    id_map: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from ..lm_head.kernel import launch_head_tiles
    from ..lm_head.merge import launch_merge_beams

    head = HeadWeights(weight, bias, id_map, logit_scale, softcap, round_to)
    lists = launch_head_tiles(hidden, head, min(width, len(weight)))
    return launch_merge_beams(*lists, scores, width, id_map)


def _fake(
    hidden: Tensor, weight: Tensor, scores: Tensor, width: int, *options: object
) -> tuple[Tensor, Tensor, Tensor]:
    batch, beams = scores.shape
    steps = min(width, beams * weight.shape[0])
    return (
        scores.new_empty((batch, steps)),
        scores.new_empty((batch, steps), dtype=torch.int64),
        scores.new_empty((batch, steps), dtype=torch.int64),
    )


_lm_head_beams = register(
    "lm_head_beams(Tensor hidden, Tensor weight, Tensor scores, int width, Tensor? bias, float? logit_scale,"
    " float? softcap, ScalarType? round_to, Tensor? id_map) -> (Tensor best, Tensor parents, Tensor tokens)",
    _launch,
    _fake,
)
