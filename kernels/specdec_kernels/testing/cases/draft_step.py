"""Cases of `draft_step` for three models: cell and residual blocks, without the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...draft_step import DraftStepWeights, draft_step
from ..case import ARCHS, Case, Inputs


def _prepare(
    batch: int,
    width: int,
    size: int,
    vocabulary: int,
    dtype: torch.dtype,
    *,
    exit_dim: int | None = None,
    blocks: int = 2,
    rnn: bool = True,
) -> Callable[[Inputs], Callable[[], Any]]:
    out = exit_dim or 2 * size
    following = blocks if exit_dim else blocks - 1

    def prepare(inputs: Inputs) -> Callable[[], Any]:
        def normal(*shape: int) -> torch.Tensor:
            return inputs.floats(*shape, dtype=dtype)

        def weight(*shape: int) -> torch.Tensor:
            return normal(*shape) * size**-0.5 if inputs.random else normal(*shape)

        weights = DraftStepWeights(
            weight(size, size) if rnn else None,
            weight(size, size) if rnn else None,
            normal(size) if rnn else None,
            weight(out, size),
            [weight(out, out) for _ in range(following)],
            [normal(out) for _ in range(following)],
        )
        generator = torch.Generator().manual_seed(width)
        tokens = torch.randint(0, vocabulary, (batch, width), generator=generator)
        parents = torch.randint(0, width, (batch, width), generator=generator)
        tokens, parents = tokens.to(inputs.device), parents.to(inputs.device)
        states, context, part = normal(batch, width, size), normal(batch, size), normal(batch, out)
        embedding = normal(vocabulary, size)
        return lambda: draft_step(
            tokens, parents, states, context, part, embedding, weights, impl="triton"
        )

    return prepare


CASES = [
    Case("llama3-8b-B1-W10-bfloat16", _prepare(1, 10, 4096, 128256, torch.bfloat16)),
    Case("llama3-8b-B8-W8-float16", _prepare(8, 8, 4096, 128256, torch.float16)),
    Case("vicuna-7b-B1-W5-float16", _prepare(1, 5, 4096, 32000, torch.float16)),
    Case("gemma-7b-B4-W8-bfloat16", _prepare(4, 8, 3072, 256000, torch.bfloat16)),
    # Two launches: the cell and the only block.
    Case("smollm2-B1-W8-bfloat16", _prepare(1, 8, 576, 49152, torch.bfloat16, blocks=1), ARCHS),
    Case("smollm2-B8-W8-float32", _prepare(8, 8, 576, 49152, torch.float32)),
    Case("smollm2-B8-W8-X576-bfloat16", _prepare(8, 8, 576, 49152, torch.bfloat16, exit_dim=576)),
    Case("smollm2-B1-W8-no-rnn-bfloat16", _prepare(1, 8, 576, 49152, torch.bfloat16, rnn=False)),
]

SMALL = [Case("B1-W3-float32", _prepare(1, 3, 32, 50, torch.float32))]

COUNTED = [
    Case("llama3-8b-B1-W10-X4096-float16",
         _prepare(1, 10, 4096, 1000, torch.float16, exit_dim=4096, blocks=1)),
    Case("smollm2-B1-W8-float16", _prepare(1, 8, 576, 1000, torch.float16)),
    Case("smollm2-B8-W8-float32", _prepare(8, 8, 576, 1000, torch.float32)),
]  # fmt: skip
"""Cases whose bytes are counted: widths of real models, small enough for an interpreter."""
