"""Finds the longest suffix of a text in a store, and the tokens that followed it."""

from __future__ import annotations

import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .order import SEPARATOR, Tokens


class Shard(NamedTuple):
    """A shard of a store, mapped into memory."""

    bytes: mmap.mmap | bytes
    """Its reversed text as bytes."""
    tokens: Tokens
    """`[n]`, the same as tokens."""
    order: memoryview
    """`[m]`, positions sorted by context; Python reads single ones faster from this view than from numpy."""
    places: npt.NDArray[np.uint32]
    """`[m]`, the same as an array."""


class Match(NamedTuple):
    """All occurrences of a text's suffix."""

    length: int
    """Number of matching tokens."""
    ranges: list[tuple[Shard, int, int]]
    """Per shard with occurrences, their range in its order: begin and end (exclusive); empty if the length is 0."""

    @classmethod
    def of(cls, shards: Sequence[Shard], query: bytes, itemsize: int) -> Match:
        """Search all shards for the longest match with a query of reversed, stored tokens."""
        near = [_insertion(shard, query, itemsize) for shard in shards]
        length = max((length for _, length in near), default=0)
        if length == 0:
            return cls(0, [])
        end = query[: length * itemsize]
        ranges = [
            (shard, *_range(shard, end, at, itemsize))
            for shard, (at, found) in zip(shards, near, strict=True)
            if found == length
        ]
        return cls(length, ranges)

    @property
    def total(self) -> int:
        """Number of occurrences."""
        return sum(last - first for _, first, last in self.ranges)

    def continuations(self, most: int, length: int) -> npt.NDArray[np.int64]:
        """Read the tokens after the occurrences.

        Args:
            most: most occurrences to read; of more, evenly spaced ones, the same every time.
            length: tokens to read after each.

        Returns:
            `[min(most, total), length]` int64 ids, -1 after the end of a text.
        """
        parts = []
        wanted = np.arange(min(most, self.total)) * self.total // max(1, min(most, self.total))
        before = 0
        for shard, first, last in self.ranges:
            here = wanted[(wanted >= before) & (wanted < before + last - first)] - before + first
            before += last - first
            parts.append(_followed(shard, here, length))
        return np.concatenate(parts) if parts else np.empty((0, length), np.int64)


def _followed(shard: Shard, at: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Read the `length` tokens that follow some positions; in the reversed text they lie before them."""
    columns = shard.places[at].astype(np.int64)[:, None] - np.arange(1, length + 1)
    # The first stored token is a separator.
    tokens = shard.tokens[columns.clip(0)].astype(np.int64)
    inside = np.logical_and.accumulate(tokens != SEPARATOR, axis=1)
    return np.where(inside, tokens - 1, -1)


def _insertion(shard: Shard, query: bytes, itemsize: int) -> tuple[int, int]:
    """Find a query's place in the order, and the number of tokens that it shares with the closer neighbour."""
    text, size = shard.bytes, len(query)
    at = bisect_left(
        shard.order, query, key=lambda place: text[place * itemsize : place * itemsize + size]
    )
    shared = 0
    for neighbour in (at - 1, at):
        if 0 <= neighbour < len(shard.order):
            begin = shard.order[neighbour] * itemsize
            shared = max(shared, _shared(query, text[begin : begin + size], itemsize))
    return at, shared


def _range(shard: Shard, end: bytes, at: int, itemsize: int) -> tuple[int, int]:
    """Find the range of positions whose context begins with `end`, next to the place of a longer query."""
    text, size = shard.bytes, len(end)

    def key(place: int) -> bytes:
        return text[place * itemsize : place * itemsize + size]

    first = bisect_left(shard.order, end, hi=at, key=key)
    return first, bisect_right(shard.order, end, lo=at, key=key)


def _shared(one: bytes, other: bytes, itemsize: int) -> int:
    """Return the length of two contexts' common beginning, in tokens."""
    return next(
        (
            i // itemsize
            for i, pair in enumerate(zip(one, other, strict=False))
            if pair[0] != pair[1]
        ),
        min(len(one), len(other)) // itemsize,
    )
