"""Cases of `pack_tree`: final beams, from a default draft's number to the kernel's limit, and an expanded search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...pack_tree import beam_parents, pack_tree
from ..case import ARCHS, Case, Inputs


def _prepare(
    batch: int, beams: int, length: int, capacity: int, vocabulary: int
) -> Callable[[Inputs], Callable[[], Any]]:
    def prepare(inputs: Inputs) -> Callable[[], Any]:
        generator = torch.Generator().manual_seed(beams)
        shape = (batch, beams, length)
        drafted = torch.randint(0, vocabulary, shape, generator=generator)
        # Every other beam shares the first half of its neighbour's tokens.
        drafted[:, 1::2, : length // 2] = drafted[:, : beams // 2 * 2 : 2, : length // 2]
        scores = -torch.rand(shape, generator=generator).cumsum(2)
        roots = torch.zeros(batch, dtype=torch.int64)
        tensors = [
            x.to(inputs.device)
            for x in (roots, drafted.flatten(1), beam_parents(drafted), scores.flatten(1))
        ]
        valid = torch.ones_like(tensors[1], dtype=torch.bool)
        # With a given width the reference does not read it from the device.
        return lambda: pack_tree(
            *tensors,
            valid=valid,
            capacity=capacity,
            width=capacity,
            max_depth=length,
            impl="triton",
        )

    return prepare


CASES = [
    Case("smollm2-B8-W5-L5-N16", _prepare(8, 5, 5, 16, 49152)),
    Case("llama3-8b-B8-W16-L8-N64", _prepare(8, 16, 8, 64, 128256), ARCHS),
    Case("vicuna-7b-B1-W64-L5-N256", _prepare(1, 64, 5, 256, 32000)),
    Case("llama3-8b-B1-W64-L16-N256", _prepare(1, 64, 16, 256, 128256)),
]

SMALL = [Case("B2-W3-L4-N9", _prepare(2, 3, 4, 9, 50))]

COUNTED = CASES[:2]
"""Cases whose bytes are counted: small enough for an interpreter."""
