"""Cases of `commit_kv`: one round in the caches of three models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...commit_kv import commit_kv
from ..case import ARCHS, Case, Inputs


def _prepare(
    batch: int, layers: int, heads: int, size: int, dtype: torch.dtype
) -> Callable[[Inputs], Callable[[], Any]]:
    nodes, accepted, prefix = 32, 4, 480

    def prepare(inputs: Inputs) -> Callable[[], Any]:
        kv = inputs.floats(layers, 2, batch, heads, prefix + nodes, size, dtype=dtype)
        path = torch.full((batch, nodes), -1)
        path[:, : accepted + 1] = torch.arange(accepted + 1) * 3  # every node but the root moves
        lengths, prefix_lens = torch.full((batch,), accepted), torch.full((batch,), prefix)
        path, lengths, prefix_lens = (x.to(inputs.device) for x in (path, lengths, prefix_lens))
        return lambda: commit_kv(kv, path, lengths, prefix_lens=prefix_lens, impl="triton")

    return prepare


CASES = [
    Case("llama3-8b-B8-bfloat16", _prepare(8, 32, 8, 128, torch.bfloat16), ARCHS),
    Case("vicuna-7b-B1-float16", _prepare(1, 32, 32, 128, torch.float16)),
    Case("smollm2-B8-float32", _prepare(8, 30, 3, 64, torch.float32)),
]

SMALL = [Case("B1-float32", _prepare(1, 2, 2, 16, torch.float32))]

COUNTED = [
    Case("llama3-8b-B2-4-layers-float16", _prepare(2, 4, 8, 128, torch.float16)),
    Case("smollm2-B2-float32", _prepare(2, 30, 3, 64, torch.float32)),
]
"""Cases whose bytes are counted: widths of real models, few enough layers for an interpreter."""
