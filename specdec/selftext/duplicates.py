"""Finds conversations whose answers nearly repeat earlier ones, with MinHash."""

from __future__ import annotations

from rensa import RMinHash, RMinHashDeduplicator

# Share of common five-token shingles from which answers count as duplicates; RefinedWeb uses 0.8.
SIMILARITY = 0.7
SHINGLE = 5
# Least tokens of a checked answer: short answers repeat legitimately.
MIN_TOKENS = 32
PERMUTATIONS = 128


class Duplicates:
    """The answers so far, with detection of near-duplicates."""

    def __init__(self) -> None:
        """Create an empty set."""
        self._seen = RMinHashDeduplicator(
            threshold=SIMILARITY, num_perm=PERMUTATIONS, use_lsh=True, seed=0
        )
        self._count = 0

    def add(self, answers: list[list[int]]) -> bool:
        """Add a conversation's answers; return whether they are new."""
        if sum(map(len, answers)) < MIN_TOKENS:
            return True
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=0)
        sketch.update(
            [
                " ".join(map(str, ids[at : at + SHINGLE]))
                for ids in answers
                for at in range(max(1, len(ids) - SHINGLE + 1))
            ]
        )
        self._count += 1
        return bool(self._seen.add(str(self._count), sketch))
