"""Cross entropy to a teacher in chunks of rows: logits of all rows are never stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from specdec_kernels import LMHeadTopK

ROWS = 512
# Called with the probabilities `[r, V]` of a chunk and its slice of rows. Overwrites them with the gradient at the logits and
# returns the summed loss.
Compare = Callable[[Tensor, slice], Tensor]


def chunked_cross_entropy(
    head: LMHeadTopK,
    hidden: Tensor,
    compare: Compare,
    learned: list[nn.Parameter],
    dtype: torch.dtype,
) -> Tensor:
    """Sum a cross entropy over rows with memory for one chunk of logits.

    Args:
        head: computes logits `[r, V]`.
        hidden: `[R, E]`.
        compare: holds the labels; the gradient of a cross entropy is the probabilities minus the teacher's.
        learned: trained parameters of the head; empty for the target's head.
        dtype: of the target. Products are in bfloat16 if it is that, else in the dtype of the head.

    Returns:
        The sum; differentiable in `hidden` and `learned`.
    """
    # A trained head is float32; its products in bfloat16 take a third of the time.
    reduced = dtype == torch.bfloat16
    hidden = hidden.to(dtype if reduced else head.linear.weight.dtype)
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, head, compare, *learned)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: LMHeadTopK, compare: Compare, *parameters: Tensor
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        grads = [torch.zeros_like(p) for p in parameters]
        reduced = torch.autocast(
            hidden.device.type, hidden.dtype, enabled=hidden.dtype == torch.bfloat16
        )
        into_hidden = torch.empty_like(hidden)
        for begin in range(0, len(hidden), ROWS):
            here = slice(begin, begin + ROWS)
            with torch.enable_grad(), reduced:
                rows = hidden[here].detach().requires_grad_()
                logits = head.logits(rows).to(rows.dtype)
            gradient = logits.detach().softmax(-1)
            total += compare(gradient, here)
            first, *others = torch.autograd.grad(logits, [rows, *parameters], gradient)
            into_hidden[here] = first
            for sum_, grad in zip(grads, others, strict=True):
                sum_ += grad
        ctx.save_for_backward(into_hidden, *grads)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        into_hidden, *grads = ctx.saved_tensors
        return into_hidden * grad, None, None, *(g * grad for g in grads)
