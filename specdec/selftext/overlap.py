"""Detects overlap with texts that must stay out of training: any 13 consecutive words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WORDS = 13
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication modulo 2**64 is invertible


@dataclass(frozen=True, slots=True)
class Overlap:
    """The word n-grams of excluded texts, hashed to 64 bits."""

    ngrams: frozenset[int]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Overlap:
        """Collect the 13-grams of `texts`; a shorter text counts as one n-gram."""
        return cls(frozenset(gram for text in texts for gram in _ngrams(text).tolist()))

    def __contains__(self, text: object) -> bool:
        """Return whether a text shares a 13-gram with the excluded texts."""
        return bool(self.ngrams) and not self.ngrams.isdisjoint(_ngrams(str(text)).tolist())


def _ngrams(text: str) -> npt.NDArray[np.uint64]:
    words = re.findall(r"\w+", text.lower())
    hashes = np.array([hash(word) & 0xFFFFFFFFFFFFFFFF for word in words], np.uint64)
    size = min(WORDS, len(words))
    count = len(words) - size + 1 if words else 0
    sums = np.zeros(count, np.uint64)
    for at in range(size):  # a polynomial in FACTOR, so that the hash depends on word order
        sums = sums * FACTOR + hashes[at : at + count]
    return sums
