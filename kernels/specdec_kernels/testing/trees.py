"""Trees of every kind, for tests and benchmarks of what runs over trees."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("chain", "star", "random")


def make_parents(kind: str, nodes: int, generator: torch.Generator) -> Tensor:
    """Draw parent pointers `[N]` int64, parents before children, -1 for the root.

    Args:
        kind: "chain" (depth N - 1), "star" (depth 1) or "random" (each node under any earlier one).
        nodes: N.
        generator: of the random ones.

    Raises:
        ValueError: if there is no such kind.
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
    """Count the steps from the root, `[..., N]` int64; 0 for padding, whose parent is -1 too."""
    depth = torch.zeros_like(parents)
    for node in range(1, parents.shape[-1]):
        parent = parents[..., node]
        above = depth.gather(-1, parent.clamp(min=0)[..., None])[..., 0]
        depth[..., node] = torch.where(parent < 0, 0, above + 1)
    return depth
