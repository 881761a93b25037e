"""A language-model head whose caller wants a few tokens and their probabilities, not `[R, V]` logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ordered_topk import ordered_topk


class TopTokens(NamedTuple):
    """The k most likely tokens of each row, the lowest id first among equals."""

    ids: Tensor
    """`[R, k]` int64."""
    log_probs: Tensor
    """`[R, k]` float32, over the whole vocabulary of the head."""
    logsumexp: Tensor
    """`[R]` float32, of the logits."""


class SureToken(NamedTuple):
    """The most likely token of each row and how sure the head is of it."""

    tokens: Tensor
    """`[R]` int64, the lowest id among equals."""
    confidence: Tensor
    """`[R]` float32, its probability."""
    logsumexp: Tensor
    """`[R]` float32, of the logits."""


def finish_logits(
    logits: Tensor,
    *,
    logit_scale: float | None,
    softcap: float | None,
    round_to: torch.dtype | None,
) -> Tensor:
    """Do to `[..., V]` products what a model does to them: round, scale, cap."""
    if round_to is not None:
        logits = logits.to(round_to)
    if logit_scale is not None:
        logits = logits * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits


def top_tokens(logits: Tensor, k: int, id_map: Tensor | None) -> TopTokens:
    """Pick from finished logits `[R, V]`; `id_map [V]` translates ids of a draft vocabulary."""
    logits = logits.float()
    best, ids = ordered_topk(logits, k)
    # The largest logit is known by now, and with it the sum needs one pass.
    logsumexp = (logits - best[:, :1]).exp_().sum(-1).log_() + best[:, 0]
    if id_map is not None:
        ids = id_map[ids]
    return TopTokens(ids, best - logsumexp[:, None], logsumexp)


def sure_token(top: TopTokens) -> SureToken:
    """Read the first of the top tokens as a choice with a confidence."""
    return SureToken(top.ids[:, 0], top.log_probs[:, 0].exp(), top.logsumexp)
