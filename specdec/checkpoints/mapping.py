"""From the tensors of one layout to those of another, written down move by move."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Move(NamedTuple):
    """What becomes of one tensor, or of a part of it."""

    source: str
    source_shape: tuple[int, ...]
    name: str | None
    """In the other layout; None where it is left out."""
    shape: tuple[int, ...] | None
    """Of the tensor with that name."""
    action: str


class TensorMapping:
    """Builds the tensors of a layout; every value is a copy, to the bit, but for indices that are written another way."""

    def __init__(self, source: dict[str, Tensor]) -> None:
        """Begin with nothing built."""
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
        """Take a tensor, or some rows and columns of it, over under a name."""
        tensor = self.source[source]
        part = tensor[rows] if columns is None else tensor[rows, columns]
        self.tensors[name] = part.contiguous().clone()
        self.moves.append(Move(source, tuple(tensor.shape), name, tuple(part.shape), action))

    def join(self, left: str, right: str, name: str) -> None:
        """Put the columns of two matrices side by side."""
        halves = {left: self.source[left], right: self.source[right]}
        self.tensors[name] = whole = torch.cat(list(halves.values()), 1)
        for side, half in halves.items():
            where = "left" if side == left else "right"
            action = f"joined, {where} columns"
            self.moves.append(Move(side, tuple(half.shape), name, tuple(whole.shape), action))

    def make(self, source: str, name: str, tensor: Tensor, action: str) -> None:
        """Put a tensor that was made of another one under a name."""
        self.tensors[name] = tensor.contiguous()
        shapes = tuple(self.source[source].shape), tuple(tensor.shape)
        self.moves.append(Move(source, shapes[0], name, shapes[1], action))

    def leave_out(self, source: str, why: str) -> None:
        """Do without a tensor."""
        shape = tuple(self.source[source].shape)
        self.moves.append(Move(source, shape, None, None, f"left out: {why}"))
