"""A mapping from the tensors of one layout to another, recorded move by move."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Move(NamedTuple):
    """The mapping of one tensor, or of a part of it."""

    source: str
    source_shape: tuple[int, ...]
    name: str | None
    """Name in the other layout; None if it is dropped."""
    shape: tuple[int, ...] | None
    """Shape of the tensor with that name."""
    action: str


class TensorMapping:
    """Builds the tensors of a layout; values are bit-exact copies, except indices in another encoding."""

    def __init__(self, source: dict[str, Tensor]) -> None:
        """Start with no tensors."""
        self.source = source
        self.tensors: dict[str, Tensor] = {}
        self.moves: list[Move] = []

    def copy(
        self,
        source: str,
        name: str,
        *,
        rows: slice = slice(None),
        columns: slice | None = None,
        action: str = "copied",
    ) -> None:
        """Copy a tensor, or a slice of it, under a name."""
        tensor = self.source[source]
        part = tensor[rows] if columns is None else tensor[rows, columns]
        self.tensors[name] = part.contiguous().clone()
        self.moves.append(Move(source, tuple(tensor.shape), name, tuple(part.shape), action))

    def join(self, left: str, right: str, name: str) -> None:
        """Concatenate the columns of two matrices."""
        halves = {left: self.source[left], right: self.source[right]}
        self.tensors[name] = whole = torch.cat(list(halves.values()), 1)
        for side, half in halves.items():
            where = "left" if side == left else "right"
            action = f"joined, {where} columns"
            self.moves.append(Move(side, tuple(half.shape), name, tuple(whole.shape), action))

    def make(self, source: str, name: str, tensor: Tensor, action: str) -> None:
        """Add a tensor derived from another one under a name."""
        self.tensors[name] = tensor.contiguous()
        shapes = tuple(self.source[source].shape), tuple(tensor.shape)
        self.moves.append(Move(source, shapes[0], name, shapes[1], action))

    def leave_out(self, source: str, why: str) -> None:
        """Drop a tensor."""
        shape = tuple(self.source[source].shape)
        self.moves.append(Move(source, shape, None, None, f"left out: {why}"))
