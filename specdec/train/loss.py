"""Cross entropy to a teacher without keeping logits: rows go through the head a chunk at a time, gradients at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from specdec_kernels import LMHeadTopK

ROWS = 512
# Takes probabilities `[r, V]` of a chunk and its place; turns them into the gradient at the logits, in place, and
# returns the summed loss.
Compare = Callable[[Tensor, slice], Tensor]


def chunked_cross_entropy(
    head: LMHeadTopK, hidden: Tensor, compare: Compare, learned: list[nn.Parameter]
) -> Tensor:
    """Sum a cross entropy over rows, with memory for one chunk of logits.

    Args:
        head: gives logits `[r, V]`.
        hidden: `[R, E]`.
        compare: knows the teacher; for cross entropy the gradient is the probabilities less the teacher's.
        learned: parameters of the head that are trained; none where it is the target's.

    Returns:
        The sum, whose gradient reaches `hidden` and `learned`.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, head, compare, *learned)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: LMHeadTopK, compare: Compare, *parameters: Tensor
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        grads = [torch.zeros_like(p) for p in parameters]
        into_hidden = torch.empty_like(hidden)
        for begin in range(0, len(hidden), ROWS):
            here = slice(begin, begin + ROWS)
            with torch.enable_grad():
                rows = hidden[here].detach().requires_grad_()
                logits = head.logits(rows)
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
