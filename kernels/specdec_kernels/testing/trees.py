"""Example trees for tests and benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("chain", "star", "random")


def make_parents(kind: str, nodes: int, generator: torch.Generator) -> Tensor:
    """Create parent pointers `[N]` int64, parents before children, -1 for the root.

    Args:
        kind: "chain" (depth N - 1), "star" (depth 1) or "random" (each node under any earlier one).
        nodes: N.
        generator: for random trees.

    Raises:
        ValueError: if the kind is unknown.
    """
    index = torch.arange(nodes)
    if kind == "chain":
        return index - 1
    if kind == "star":
        return torch.where(index == 0, -1, 0)
    if kind == "random":
        parents = (torch.rand(nodes, generator=generator) * index).long()
        return torch.where(index == 0, -1, parents)
    raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")


def depths(parents: Tensor) -> Tensor:
    """Return each node's depth, `[..., N]` int64; 0 for the root and for padding, whose parents are -1."""
    depth = torch.zeros_like(parents)
    for node in range(1, parents.shape[-1]):
        parent = parents[..., node]
        above = depth.gather(-1, parent.clamp(min=0)[..., None])[..., 0]
        depth[..., node] = torch.where(parent < 0, 0, above + 1)
    return depth
