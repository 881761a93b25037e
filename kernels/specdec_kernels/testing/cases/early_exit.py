"""Cases of `early_exit_step` for three models, and of the two launches that only this op has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...early_exit import AdapterWeights, early_exit_step
from ...lm_head import HeadWeights
from ..case import ARCHS, Case, Inputs

PREFIX = 500


class _Step:
    def __init__(
        self, inputs: Inputs, batch: int, size: int, heads: int, kv_heads: int, head_dim: int,
        vocabulary: int, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        def normal(*shape: int) -> Tensor:
            return inputs.floats(*shape, dtype=dtype)

        def weight(*shape: int) -> Tensor:
            return normal(*shape) * size**-0.5 if inputs.random else normal(*shape)

        wide, narrow = heads * head_dim, kv_heads * head_dim
        self.hidden = normal(batch, size)
        self.caches = (normal(batch, kv_heads, PREFIX + 12, head_dim) for _ in range(2))
        self.adapter = AdapterWeights(
            normal(size), weight(wide, size), weight(narrow, size), weight(narrow, size),
            weight(size, wide), normal(size), 10000.0, 1e-6,
        )  # fmt: skip
        self.head = HeadWeights(weight(vocabulary, size), round_to=dtype)
        device = inputs.device
        self.prefix_lens = torch.full((batch,), PREFIX, device=device)
        self.positions = self.prefix_lens.clone()
        self.stopped = torch.zeros(batch, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        self.confidence = torch.zeros(batch, device=device)


def _prepare(*shape: Any) -> Callable[[Inputs], Callable[[], Any]]:
    def prepare(inputs: Inputs) -> Callable[[], Any]:
        step = _Step(inputs, *shape)
        k_cache, v_cache = step.caches
        return lambda: early_exit_step(
            step.hidden,
            k_cache,
            v_cache,
            step.adapter,
            step.head,
            prefix_lens=step.prefix_lens,
            positions=step.positions,
            stopped=step.stopped,
            tokens=step.tokens,
            confidence=step.confidence,
            eta=0.0,
            impl="triton",
        )

    return prepare


def _prepare_own_launches(*shape: Any) -> Callable[[Inputs], Callable[[], Any]]:
    def prepare(inputs: Inputs) -> Callable[[], Any]:
        step = _Step(inputs, *shape)
        batch, tiles = len(step.hidden), -(-len(step.head.weight) // 128)
        keys = torch.zeros((batch, tiles, 1), dtype=torch.int64, device=inputs.device)
        maxima, sums = (inputs.floats(batch, tiles, dtype=torch.float32) for _ in range(2))
        rows = (step.prefix_lens, None, step.positions, step.stopped, None)
        k_cache, v_cache = step.caches

        def launch() -> None:
            from ...early_exit.kernel import launch_adapter_qkv, launch_exit

            weights = step.adapter[:4]
            _, tree = launch_adapter_qkv(
                step.hidden, k_cache, v_cache, *rows, *weights, 10000.0, 1e-6
            )
            written = (step.positions, step.stopped, step.tokens, step.confidence)
            launch_exit(keys, maxima, sums, None, tree[3], *written, 0.0)

        return launch

    return prepare


LLAMA = (4096, 32, 8, 128, 128256)
VICUNA = (4096, 32, 32, 128, 32000)
SMOLLM = (576, 9, 3, 64, 49152)

CASES = [
    Case("llama3-8b-B8-own-bfloat16", _prepare_own_launches(8, *LLAMA, torch.bfloat16), ARCHS),
    Case("llama3-8b-B1-bfloat16", _prepare(1, *LLAMA, torch.bfloat16)),
    Case("vicuna-7b-B1-float16", _prepare(1, *VICUNA, torch.float16)),
    Case("vicuna-7b-B16-float16", _prepare(16, *VICUNA, torch.float16)),
    Case("smollm2-B1-bfloat16", _prepare(1, *SMOLLM, torch.bfloat16)),
    Case("smollm2-B8-float32", _prepare(8, *SMOLLM, torch.float32)),
    Case("gemma-7b-B4-bfloat16", _prepare(4, 3072, 16, 16, 256, 256000, torch.bfloat16)),
]

SMALL = [Case("B2-float32", _prepare(2, 32, 2, 1, 16, 150, torch.float32))]

COUNTED = [
    Case("llama3-8b-B1-V1024-bfloat16", _prepare(1, *LLAMA[:4], 1024, torch.bfloat16)),
    Case("smollm2-B8-V8192-float16", _prepare(8, *SMOLLM[:4], 8192, torch.float16)),
]
"""Cases whose bytes are counted: widths of real models, small enough for an interpreter."""
