"""A language-model head that returns the most likely tokens and their probabilities instead of logits `[R, V]`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ordered_topk import ordered_topk
from .weights import HeadWeights


class TopTokens(NamedTuple):
    """The k most likely tokens of each row, the lowest id first among equals."""

    ids: Tensor
    """`[R, k]` int64."""
    log_probs: Tensor
    """`[R, k]` float32, over the whole vocabulary of the head."""
    logsumexp: Tensor
    """`[R]` float32, of the logits."""


class SureToken(NamedTuple):
    """The most likely token of each row and its probability."""

    tokens: Tensor
    """`[R]` int64, the lowest id among equals."""
    confidence: Tensor
    """`[R]` float32, its probability."""
    logsumexp: Tensor
    """`[R]` float32, of the logits."""


def finish_logits(logits: Tensor, head: HeadWeights) -> Tensor:
    """Round, scale and soft-cap products `[..., V]` as the model does."""
    if head.round_to is not None:
        logits = logits.to(head.round_to)
    if head.logit_scale is not None:
        logits = logits * head.logit_scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits


def top_tokens(logits: Tensor, k: int, id_map: Tensor | None) -> TopTokens:
    """Return the top tokens of finished logits `[R, V]`; `id_map [V]` translates ids of a draft vocabulary."""
    logits = logits.float()
    best, ids = ordered_topk(logits, k)
    # The largest logit is known, so the sum needs one pass. It is clamped to a finite number, as -inf - -inf would be
    # NaN; if all logits are -inf, so is the logsumexp.
    lowest = torch.finfo(logits.dtype).min
    highest = best[:, :1].clamp(min=lowest)
    logsumexp = (logits - highest).exp_().sum(-1, keepdim=True).log_() + highest
    if id_map is not None:
        ids = id_map[ids]
    return TopTokens(ids, best - logsumexp.clamp(min=lowest), logsumexp[:, 0])


def sure_token(top: TopTokens) -> SureToken:
    """Return the first of the top tokens with its probability."""
    return SureToken(top.ids[:, 0], top.log_probs[:, 0].exp(), top.logsumexp)


def lm_head_topk_reference(hidden: Tensor, head: HeadWeights, k: int) -> TopTokens:
    """Reference implementation; arguments as in `lm_head_topk`."""
    weight, bias = head.weight, head.bias
    if head.round_to is None:  # products of low-precision inputs, summed and kept in float32
        hidden, weight = hidden.float(), weight.float()
        bias = None if bias is None else bias.float()
    return top_tokens(finish_logits(F.linear(hidden, weight, bias), head), k, head.id_map)
