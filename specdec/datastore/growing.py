"""`GrowingIndex`: an index of growing texts that finds earlier occurrences of a text's last tokens.

Tokens are stored in order of arrival, whatever their text, each with the position of its predecessor and its successor.
Texts with a common beginning share its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

LENGTHS = (1, 2, 4, 8)
"""Lengths of suffixes under which positions are listed, in tokens."""
NOWHERE = 0
"""The position before a text's first token and after its last."""


class Found(NamedTuple):
    """Earlier occurrences, longest match first, then latest first."""

    matched: Ints
    """`[H]`, number of matching tokens, at least 1."""
    own: npt.NDArray[np.bool_]
    """`[H]`, whether the occurrence is in the text itself."""
    continuations: Ints
    """`[H, L]` token ids that followed, -1 after the end of a text."""

    def joined(self, other: Found, most: int) -> Found:
        """Return the first `most` of these and of `other`'s occurrences, which are older."""
        matched = np.concatenate([self.matched, other.matched])
        order = (-matched).argsort(kind="stable")[:most]
        both = np.concatenate([self.continuations, other.continuations])
        own = np.concatenate([self.own, other.own])
        return Found(matched[order], own[order], both[order])


class GrowingIndex:
    """An index of texts in memory. Adding a token takes a few dictionary operations, a look-up a few dozen array operations."""

    def __init__(self) -> None:
        """Create an empty index."""
        self.size = 1
        """Positions in use, `NOWHERE` included."""
        self._columns = np.full((4, 1024), NOWHERE, np.int32)
        """Per position: token, previous position, next position, number of its text."""
        self._columns[0, NOWHERE] = -1
        self._places: dict[int, int | list[int]] = {}
        """Positions by the hash of the tokens that end there; matches are compared, so hash collisions are harmless."""

    def extend(self, text: Sequence[int], begin: int, last: int, number: int) -> int:
        """Add the tokens of a text from `begin` on.

        Args:
            text: token ids, more than `begin`.
            begin: number of tokens already in the index.
            last: position of the last known token; `NOWHERE` if `begin` is 0.
            number: number of the text.

        Returns:
            The position of the first new token; the others follow it.
        """
        first, count = self.size, len(text) - begin
        while first + count > self._columns.shape[1]:
            self._columns = np.concatenate([self._columns, np.zeros_like(self._columns)], axis=1)
        self.size += count
        places = np.arange(first, first + count)
        self._columns[0, places] = text[begin:]
        self._columns[1, places] = places - 1
        self._columns[2, places[:-1]] = places[1:]
        self._columns[1, first] = last
        self._columns[3, places] = number
        if last != NOWHERE:
            self._columns[2, last] = first
        listed = self._places
        for end in range(begin + 1, len(text) + 1):
            place = first + end - 1 - begin
            for length in LENGTHS:
                if length > end:
                    break
                key = hash(tuple(text[end - length : end]))
                there = listed.get(key)
                if there is None:
                    listed[key] = place
                elif isinstance(there, int):
                    listed[key] = [there, place]
                else:
                    there.append(place)
        return first

    def find(
        self, text: Sequence[int], last: int, number: int, *, most: int, length: int, matched: int
    ) -> Found:
        """Find earlier occurrences of a text's last tokens.

        Args:
            text: token ids.
            last: position of its last token, `NOWHERE` for a text that is not in the index. A repetition that reaches
                this position is assumed to continue.
            number: number of the text.
            most: most occurrences: the latest of those listed under the longest suffix.
            length: number of following tokens to return.
            matched: most tokens to compare.
        """
        places = self._candidates(text, most)
        tokens, before, behind, numbers = self._columns
        places = places[behind[places] != NOWHERE][:most]
        agreed = np.zeros(len(places), np.int64)
        cursor, alive = places, np.ones(len(places), bool)
        for wanted in text[: -matched - 1 : -1]:
            alive = alive & (tokens[cursor] == wanted)
            if not alive.any():
                break
            agreed += alive
            cursor = before[cursor]
        order = (-agreed).argsort(kind="stable")
        order = order[agreed[order] > 0]
        places = places[order]
        return Found(agreed[order], numbers[places] == number, self._followed(places, last, length))

    def _followed(self, places: Ints, last: int, length: int) -> Ints:
        """Read the tokens after some positions."""
        tokens, _, behind, _ = self._columns
        ahead = np.empty((length, len(places)), np.int64)
        for step in range(length):
            ahead[step] = behind[places]
            places = ahead[step]
        ahead = ahead.T
        if last != NOWHERE:
            # A continuation that reaches the text's end repeats from the occurrence on.
            ends = ahead == last
            round_ = ends.any(1)
            if round_.any():
                steps = ends[round_].argmax(1)[:, None] + 1
                ahead[round_] = np.take_along_axis(ahead[round_], np.arange(length) % steps, axis=1)
        return tokens[ahead].astype(np.int64)

    def _candidates(self, text: Sequence[int], most: int) -> Ints:
        """List positions, those of the longest listed suffix first; may include the text's own last position."""
        found: dict[int, None] = {}
        for length in reversed(LENGTHS):
            if length <= len(text):
                there = self._places.get(hash(tuple(text[-length:])), [])
                found.update(
                    dict.fromkeys([there] if isinstance(there, int) else there[: -most - 2 : -1])
                )
                if len(found) > most:
                    break
        return np.fromiter(found, np.int64, len(found))


class KnownText:
    """A text of an index, with the positions of its tokens."""

    def __init__(self, text: list[int], number: int) -> None:
        """Create a text from a growing list, with nothing indexed yet, and a unique number."""
        self.text, self.number = text, number
        self.places: list[int] = []

    @property
    def last(self) -> int:
        """The position of the last indexed token."""
        return self.places[-1] if self.places else NOWHERE

    def follow(self, index: GrowingIndex) -> None:
        """Add the list's new tokens to the index."""
        if (known := len(self.places)) < len(self.text):
            first = index.extend(self.text, known, self.last, self.number)
            self.places += range(first, first + len(self.text) - known)

    def part_from(self, other: KnownText) -> None:
        """Share another text's positions for the common beginning; if that is at least half of it, take its number too."""
        shared = shared_beginning(self.text, other.text[: len(other.places)])
        if shared > len(self.places):
            self.places = other.places[:shared]
            if 2 * shared >= len(self.text):
                self.number = other.number


def shared_beginning(one: list[int], other: list[int]) -> int:
    """Return the length of two texts' common beginning, in tokens."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
