"""Text that is being written, indexed as it grows: where its last tokens stood before, and what followed there.

Tokens are kept in the order of their arrival, whichever text they belong to, each with the place of the one before it
and of the one behind it. A text that goes on where an earlier one parts from it shares what both begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

LENGTHS = (1, 2, 4, 8)
"""Of the ends of texts that places are listed under."""
NOWHERE = 0
"""The place before a text's first token and behind its last."""


class Found(NamedTuple):
    """Earlier places, those where more tokens agree first, and the latest first among equals."""

    matched: Ints
    """`[H]`, how many tokens agree, from 1."""
    own: npt.NDArray[np.bool_]
    """`[H]`, whether the place lies in the text itself, not in another one."""
    continuations: Ints
    """`[H, L]` token ids that followed, -1 behind the end of a text."""

    def joined(self, other: Found, most: int) -> Found:
        """Return the `most` first of these places and of others, which are older."""
        matched = np.concatenate([self.matched, other.matched])
        order = (-matched).argsort(kind="stable")[:most]
        both = np.concatenate([self.continuations, other.continuations])
        own = np.concatenate([self.own, other.own])
        return Found(matched[order], own[order], both[order])


class GrowingIndex:
    """Texts of one machine's memory: a few dictionary operations per token, a look-up in a few dozen array operations."""

    def __init__(self) -> None:
        """Begin without text."""
        self.size = 1
        """Places in use, `NOWHERE` included."""
        self._columns = np.full((4, 1024), NOWHERE, np.int32)
        """Per place its token, the place before it, the one behind it, and the number of its text."""
        self._columns[0, NOWHERE] = -1
        self._places: dict[int, int | list[int]] = {}
        """By the hash of some last tokens where they stand; what only shares the hash does not match."""

    def extend(self, text: Sequence[int], begin: int, last: int, number: int) -> int:
        """Add the tokens of a text from `begin` on.

        Args:
            text: token ids, at least one behind `begin`.
            begin: how many are known.
            last: the place of the last known one; `NOWHERE` if `begin` is 0.
            number: of the text.

        Returns:
            The place of the first new token; the others lie behind it, side by side.
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
        """Find where the last tokens of a text stood before.

        Args:
            text: token ids.
            last: the place of its last token; what repeats itself up to there is taken to go on. `NOWHERE` for a text
                that is not in here.
            number: of the text.
            most: places wanted: those listed under the longest end of the text, and of these the latest.
            length: tokens wanted of what followed.
            matched: most tokens that are compared.
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
        """Read what stands behind some places."""
        tokens, _, behind, _ = self._columns
        ahead = np.empty((length, len(places)), np.int64)
        for step in range(length):
            ahead[step] = behind[places]
            places = ahead[step]
        ahead = ahead.T
        if last != NOWHERE:
            # Where a text ends in the same way as it did at the place, it goes round between the two.
            ends = ahead == last
            round_ = ends.any(1)
            if round_.any():
                steps = ends[round_].argmax(1)[:, None] + 1
                ahead[round_] = np.take_along_axis(ahead[round_], np.arange(length) % steps, axis=1)
        return tokens[ahead].astype(np.int64)

    def _candidates(self, text: Sequence[int], most: int) -> Ints:
        """List places from the longest listed end of the text on; the text's own last place may be one."""
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
    """A text of an index, and where its tokens are."""

    def __init__(self, text: list[int], number: int) -> None:
        """Take a list that grows, none of it known yet, and a number that no other text has."""
        self.text, self.number = text, number
        self.places: list[int] = []

    @property
    def last(self) -> int:
        """The place of the last known token."""
        return self.places[-1] if self.places else NOWHERE

    def follow(self, index: GrowingIndex) -> None:
        """Add what the list has grown by."""
        if (known := len(self.places)) < len(self.text):
            first = index.extend(self.text, known, self.last, self.number)
            self.places += range(first, first + len(self.text) - known)

    def part_from(self, other: KnownText) -> None:
        """Know what another text knows, as far as both begin alike; with half of it in common, it is the same text."""
        shared = shared_beginning(self.text, other.text[: len(other.places)])
        if shared > len(self.places):
            self.places = other.places[:shared]
            if 2 * shared >= len(self.text):
                self.number = other.number


def shared_beginning(one: list[int], other: list[int]) -> int:
    """Count the tokens that two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
