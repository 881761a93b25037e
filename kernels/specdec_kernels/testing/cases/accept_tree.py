"""Cases of `accept_tree`: trees whose ancestor sets have one word and several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...accept_tree import accept_tree
from ...ancestors import ancestor_matrix, pack_bits
from ..case import ARCHS, Case, Inputs
from ..trees import depths, make_parents


def _prepare(batch: int, nodes: int) -> Callable[[Inputs], Callable[[], Any]]:
    def prepare(inputs: Inputs) -> Callable[[], Any]:
        generator = torch.Generator().manual_seed(nodes)
        parents = torch.stack([make_parents("random", nodes, generator) for _ in range(batch)])
        # No two children share a token, and every parent's pick is its last child: the path is long.
        tokens = torch.arange(nodes).repeat(batch, 1)
        picked = torch.zeros_like(tokens).scatter_reduce(1, parents[:, 1:], tokens[:, 1:], "amax")
        tree = (
            tokens,
            parents,
            depths(parents),
            pack_bits(ancestor_matrix(parents)),
            torch.full((batch,), nodes),
            picked,
        )
        tensors = [x.to(inputs.device) for x in tree]
        return lambda: accept_tree(*tensors, impl="triton")

    return prepare


CASES = [
    Case("B8-N64", _prepare(8, 64), ARCHS),
    Case("B1-N256", _prepare(1, 256)),
    Case("B32-N16", _prepare(32, 16)),
]

SMALL = [Case("B2-N9", _prepare(2, 9))]

COUNTED = CASES
"""Cases whose bytes are counted: small enough for an interpreter."""
