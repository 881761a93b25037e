"""Initial weights taken from the target: a small budget of text does not suffice to learn a head from random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..model.target import Target


@torch.no_grad()
def copy_final_norm(target: Target, norm: nn.RMSNorm) -> None:
    """Set the scale of a norm to that of the target's final norm.

    Args:
        target: its final norm may subtract the mean and add a bias; without one, nothing is copied.
        norm: over the target's hidden size; its weight is written.
    """
    final: Any = target.parts.norm
    if final is None:
        return
    # Numbers of mean zero and mean square one pass both kinds of norm unchanged; the difference drops the bias.
    signs = torch.ones(len(norm.weight), dtype=target.dtype, device=target.device)
    signs[1::2] = -1
    norm.weight.copy_((final(signs) - final(-signs)) / 2 * signs)


@torch.no_grad()
def copy_head(target: Target, draft_vocabulary: Tensor | None, head: nn.Linear) -> None:
    """Set a head's rows to those of the target's head.

    Args:
        target: the head's hidden size is that of its embedding.
        draft_vocabulary: `[Vd]` int64, the tokens of the rows; None for all.
        head: `E -> Vd`; its weight is written.
    """
    head.weight.copy_(target.draft_head(draft_vocabulary).linear.weight)
