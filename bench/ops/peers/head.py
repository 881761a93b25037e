"""The head as a product, then what PyTorch has for the rest; equal logits come in any order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def topk(
    hidden: Tensor, weight: Tensor, k: int, softcap: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the product, then `topk` and `logsumexp`."""
    logits = F.linear(hidden, weight)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.float()
    best, ids = logits.topk(k)
    total = logits.logsumexp(-1)
    return ids, best - total[..., None], total


def beams(
    hidden: Tensor, weight: Tensor, scores: Tensor, width: int, softcap: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the best tokens of each beam, then the best beams."""
    ids, log_probs, _ = topk(hidden, weight, width, softcap)
    best, at = (scores[:, :, None] + log_probs).flatten(1).topk(width)
    return best, at // width, ids.flatten(1).gather(1, at)


PLAIN: dict[str, Callable[..., Any]] = {"lm_head_topk": topk, "lm_head_beams": beams}


def head_peer(name: str, arguments: dict[str, Any]) -> Callable[[], Any]:
    """Return the call; options that our cases do not have are left out."""
    return partial(PLAIN[name], **{k: v for k, v in arguments.items() if k != "round_to"})
