"""The head as a product, then what PyTorch has for the rest; equal logits come in any order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec_kernels.lm_head import HeadWeights


def topk(hidden: Tensor, head: HeadWeights, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take the product, then `topk` and `logsumexp`."""
    logits = F.linear(hidden, head.weight)
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logits = logits.float()
    best, ids = logits.topk(k)
    total = logits.logsumexp(-1)
    return ids, best - total[..., None], total


def beams(
    hidden: Tensor, head: HeadWeights, scores: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the best tokens of each beam, then the best beams."""
    ids, log_probs, _ = topk(hidden, head, width)
    best, at = (scores[:, :, None] + log_probs).flatten(1).topk(width)
    return best, at // width, ids.flatten(1).gather(1, at)


PLAIN: dict[str, Callable[..., Any]] = {"lm_head_topk": topk, "lm_head_beams": beams}


def head_peer(name: str, arguments: dict[str, Any]) -> Callable[[], Any]:
    """Return the call; options that our cases do not have are left out."""
    return partial(PLAIN[name], **arguments)
