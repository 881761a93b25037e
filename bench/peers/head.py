"""The head as a product, then what PyTorch has for the rest; equal logits come in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def head_peers(
    hidden: Tensor, weight: Tensor, k: int, softcap: float | None = None, **others: Any
) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Return the product with `topk` and `logsumexp`; options that our cases do not have are left out."""

    def take() -> tuple[Tensor, Tensor, Tensor]:
        logits = F.linear(hidden, weight)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits.float()
        best, ids = logits.topk(k)
        total = logits.logsumexp(-1)
        return ids, best - total[:, None], total

    return {"topk": lambda: take}
