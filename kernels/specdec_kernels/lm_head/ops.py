"""The public functions: check their arguments, then run the reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import SureToken, TopTokens, finish_logits, sure_token, top_tokens

MOST_TOKENS = 64


def lm_head_topk(
    hidden: Tensor,
    weight: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    logit_scale: float | None = None,
    softcap: float | None = None,
    round_to: torch.dtype | None = None,
    id_map: Tensor | None = None,
) -> TopTokens:
    """Take the k most likely tokens of each row, with log-probabilities.

    Args:
        hidden: `[R, E]`.
        weight: `[V, E]`, the rows of the head; a draft vocabulary has some of the target's.
        k: 1 to 64, and at most V.
        bias: `[V]`.
        logit_scale: factor on the logits (Cohere; 1 / Granite's divisor).
        softcap: logits become `softcap * tanh(logits / softcap)` (Gemma 2).
        round_to: dtype that the model rounds its logits to; None for float32 throughout.
        id_map: `[V]` int64, the target's id of each row of the head.

    Returns:
        Ids, log-probabilities, logsumexp.

    Raises:
        ValueError: if shapes do not fit or `k` is out of range.
    """
    logits = _logits(hidden, weight, bias, logit_scale, softcap, round_to)
    if not 1 <= k <= min(MOST_TOKENS, weight.shape[0]):
        raise ValueError(
            f"k: expected 1 to {min(MOST_TOKENS, weight.shape[0])} (64 and V at most), got {k}"
        )
    if id_map is not None and id_map.shape != weight.shape[:1]:
        raise ValueError(f"id_map: expected shape [{weight.shape[0]}], got {list(id_map.shape)}")
    return top_tokens(logits, k, id_map)


def lm_head_confidence(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float | None = None,
    softcap: float | None = None,
    round_to: torch.dtype | None = None,
    id_map: Tensor | None = None,
) -> SureToken:
    """Take the most likely token of each row and its probability (Kangaroo section 3.2).

    Arguments, and errors, as in `lm_head_topk`.
    """
    top = lm_head_topk(
        hidden,
        weight,
        1,
        bias=bias,
        logit_scale=logit_scale,
        softcap=softcap,
        round_to=round_to,
        id_map=id_map,
    )
    return sure_token(top)


def _logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logit_scale: float | None,
    softcap: float | None,
    round_to: torch.dtype | None,
) -> Tensor:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "hidden, weight: expected shapes [R, E] and [V, E], "
            f"got {list(hidden.shape)} and {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected shape [{weight.shape[0]}], got {list(bias.shape)}")
    if round_to is None:  # products of low-precision inputs, summed and kept in float32
        hidden, weight = hidden.float(), weight.float()
        bias = None if bias is None else bias.float()
    logits = F.linear(hidden, weight, bias)
    return finish_logits(logits, logit_scale=logit_scale, softcap=softcap, round_to=round_to)
