"""Detects repeating text during generation; it is cut after the second repetition."""

from __future__ import annotations

# Least tokens in a row that equal those one period before; at least two periods of them, so the text occurs three times.
MIN_REPEATED = 24
GRAM = 4


class LoopWatch:
    """Detects repetition in a growing text, in constant time per token, for periods of any length."""

    def __init__(self) -> None:
        """Create a detector without text."""
        self.ids: list[int] = []
        self.period, self.repeated = 0, 0
        self._ends: dict[tuple[int, ...], int] = {}  # of the grams so far, the latest of each

    @property
    def kept(self) -> int:
        """Number of tokens up to the end of the second period."""
        return len(self.ids) - self.repeated + self.period

    def add(self, token: int) -> bool:
        """Add the next token; return whether the text repeats itself now."""
        self.ids.append(token)
        at = len(self.ids) - 1
        if self.period and token == self.ids[at - self.period]:
            self.repeated += 1
        else:
            self.period, self.repeated = 0, 0
        gram = tuple(self.ids[-GRAM:])
        if len(gram) == GRAM:
            before = self._ends.get(gram)
            if not self.period and before is not None:
                self.period, self.repeated = at - before, GRAM
            self._ends[gram] = at
        return self.period > 0 and self.repeated >= max(MIN_REPEATED, 2 * self.period)


def loop_end(ids: list[int]) -> int:
    """Return the number of tokens to keep of a finished text: all of them if it does not repeat itself."""
    watch = LoopWatch()
    return next((watch.kept for token in ids if watch.add(token)), len(ids))
