"""Cases of `tree_attention`: heads of real models, each dtype, and every option that adds code to a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...ancestors import ancestor_matrix, pack_bits
from ...tree_attention import tree_attention
from ..case import ARCHS, Case, Inputs
from ..trees import depths, make_parents

Shape = tuple[int, int, int, int, int]
"""B, N, H, G, D."""


def prepare(
    shape: Shape,
    prefix: int | list[int],
    dtype: torch.dtype,
    *,
    shared: int = 0,
    spare: int = 0,
    **options: Any,
) -> Callable[[Inputs], Callable[[], Any]]:
    """Create a case; `prefix` is one length for all rows or one per row, and the cache has `spare` slots after the longest."""
    batch, nodes, heads, kv_heads, size = shape
    prefixes = [prefix] * batch if isinstance(prefix, int) else prefix
    slots = max(prefixes) + nodes + spare

    def prepare(inputs: Inputs) -> Callable[[], Any]:
        generator = torch.Generator().manual_seed(nodes)
        parents = torch.stack([make_parents("random", nodes, generator) for _ in range(batch)])
        # Queries in the order in which Hugging Face models pass them, `[B, H, N, D]`.
        q = inputs.floats(batch, heads, nodes, size, dtype=dtype).transpose(1, 2)
        k, v = (inputs.floats(batch, kv_heads, slots, size, dtype=dtype) for _ in "kv")
        tree: dict[str, Any] = {
            "prefix_lens": torch.tensor(prefixes),
            "ancestors": pack_bits(ancestor_matrix(parents)),
            "depth": depths(parents),
            "cache_rows": torch.arange(batch),
        }
        if shared:
            tree["shared_rows"] = torch.zeros(batch, dtype=torch.int64)
            tree["shared_lens"] = torch.full((batch,), shared)
        tree = {name: x.to(inputs.device) for name, x in tree.items()}
        return lambda: tree_attention(q, k, v, **tree, **options, impl="triton")

    return prepare


FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
LLAMA3, VICUNA, SMOLLM2, GEMMA = (32, 8, 128), (32, 32, 128), (9, 3, 64), (8, 4, 256)
GEMMA2: dict[str, Any] = {"softcap": 50.0, "window": 4096, "scale": 256**-0.5}

VICUNA_B32 = Case("vicuna-7b-B32-N8-P2000-float16", prepare((32, 8, *VICUNA), 2000, FP16))

CASES = [
    Case("llama3-8b-B1-N64-P8000-bfloat16", prepare((1, 64, *LLAMA3), 8000, BF16)),
    Case("smollm2-B1-N1-P200-bfloat16", prepare((1, 1, *SMOLLM2), 200, BF16), ("sm_90",)),
    Case("smollm2-B1-N16-P200-float32", prepare((1, 16, *SMOLLM2), 200, FP32), ("sm_80", "gfx942")),
    Case("gemma2-9b-B32-N16-P8000-float16", prepare((32, 16, *GEMMA), 8000, FP16, **GEMMA2), ("sm_90",)),
    Case("llama3-8b-B8-N32-P4000-bfloat16", prepare((8, 32, *LLAMA3), 4000, BF16)),
    Case("llama3-8b-B8-N64-P4000-shared-2048-bfloat16",
         prepare((8, 64, *LLAMA3), 4000, BF16, shared=2048), ARCHS),
    Case("vicuna-7b-B1-N64-P2000-float16", prepare((1, 64, *VICUNA), 2000, FP16)),
    VICUNA_B32,
    Case("llama3-8b-B1-N16-P2000-float32", prepare((1, 16, *LLAMA3), 2000, FP32)),
    Case("llama3-8b-B1-N16-P2000-fixed-bfloat16",
         prepare((1, 16, *LLAMA3), 2000, BF16, split_policy="fixed")),
    Case("gemma2-9b-B1-N64-P2000-bfloat16", prepare((1, 64, *GEMMA), 2000, BF16, **GEMMA2)),
    Case("gemma2-9b-B1-N16-P2000-float32", prepare((1, 16, *GEMMA), 2000, FP32, **GEMMA2)),
    Case("phi-2-B1-N32-P1000-float16", prepare((1, 32, 32, 32, 80), 1000, FP16)),
    Case("phi-3-mini-B1-N32-P2000-bfloat16", prepare((1, 32, 32, 32, 96), 2000, BF16)),
    *(
        Case(f"phi-3-mini-B1-N64-P4096-window-{name}",
             prepare((1, 64, 32, 32, 96), 4096, dtype, window=2047))
        for name, dtype in (("bfloat16", BF16), ("float32", FP32))
    ),
    Case("qwen2-7b-B4-N32-P2000-bfloat16", prepare((4, 32, 28, 4, 128), 2000, BF16)),
]  # fmt: skip

SMALL = [
    Case("B2-N5-P40-float32", prepare((2, 5, 4, 2, 16), 40, FP32)),
    Case("B1-N1-P40-float32", prepare((1, 1, 4, 2, 16), 40, FP32)),
    Case("B2-N5-P40-shared-20-float32", prepare((2, 5, 4, 2, 16), 40, FP32, shared=20)),
]


def _grid(batch: int, nodes: int, prefix: int) -> Case:
    name = f"llama3-8b-B{batch}-N{nodes}-P{prefix}-bfloat16"
    return Case(name, prepare((batch, nodes, *LLAMA3), prefix, BF16))


GRID = [
    *(_grid(*shape) for shape in ((32, 16, 8192), (1, 1, 8192), (8, 64, 8192))),
    VICUNA_B32,
    *(_grid(*shape) for shape in ((1, 16, 2048), (8, 16, 32768), (8, 1, 8192), (1, 64, 2048))),
    *(_grid(*shape) for shape in ((1, 16, 32768), (32, 64, 2048), (1, 64, 32768), (8, 16, 2048))),
    *(_grid(batch, 16, prefix) for batch, prefix in ((1, 8192), (8, 8192), (32, 2048))),
    *(_grid(batch, 64, prefix) for batch, prefix in ((1, 8192), (8, 2048))),
    *(_grid(batch, 1, prefix) for batch, prefix in ((32, 2048), (1, 32768))),
    *(_grid(batch, 64, prefix) for batch, prefix in ((32, 8192), (8, 32768))),
    *(_grid(32, nodes, 32768) for nodes in (16, 64)),
]
"""Verification of trees over short and long prefixes, in small and large batches. First the cases of most targets in
`bench/report/gpu/targets.py`, last the cases for which transformers' attention (K and V repeated) takes tens of gigabytes."""

COUNTED = [
    Case("llama3-8b-B1-N64-P1024-bfloat16", prepare((1, 64, *LLAMA3), 1024, BF16)),
    Case("llama3-8b-B1-N16-P2048-bfloat16", prepare((1, 16, *LLAMA3), 2048, BF16)),
    Case("vicuna-7b-B1-N64-P512-bfloat16", prepare((1, 64, *VICUNA), 512, BF16)),
    Case("smollm2-B2-N16-P1000-float32", prepare((2, 16, *SMOLLM2), 1000, FP32)),
    Case("smollm2-B8-N16-P1024-shared-1024-float16",
         prepare((8, 16, *SMOLLM2), 1024, FP16, shared=1024)),
    Case("smollm2-B4-N16-P2048-63-64-65-spare-float16",
         prepare((4, 16, *SMOLLM2), [2048, 63, 64, 65], FP16, spare=600)),
]  # fmt: skip
"""Cases whose bytes are counted: widths of real models, small enough for an interpreter."""
