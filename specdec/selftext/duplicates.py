"""Conversations whose answers say again what others have said: found by MinHash."""

from __future__ import annotations

from rensa import RMinHash, RMinHashDeduplicator

# Answers are alike that share this much of their shingles of five tokens; as in RefinedWeb, of 0.8, a little stricter.
SIMILARITY = 0.7
SHINGLE = 5
# A short answer is alike to many, and right each time.
MIN_TOKENS = 32
PERMUTATIONS = 128


class Duplicates:
    """Remembers answers, and knows one that is nearly the same."""

    def __init__(self) -> None:
        """Begin without any."""
        self._seen = RMinHashDeduplicator(
            threshold=SIMILARITY, num_perm=PERMUTATIONS, use_lsh=True, seed=0
        )
        self._count = 0

    def add(self, answers: list[list[int]]) -> bool:
        """Take the answers of a conversation; tell whether they are new."""
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
