"""Text that goes in circles: found while it is written, and cut behind the second time around."""

from __future__ import annotations

# As many tokens in a row have to repeat what stands one period before, and two periods of them: three times the same.
MIN_REPEATED = 24
GRAM = 4


class LoopWatch:
    """Watches a text grow; constant time per token, for periods of any length."""

    def __init__(self) -> None:
        """Begin without text."""
        self.ids: list[int] = []
        self.period, self.repeated = 0, 0
        self._ends: dict[tuple[int, ...], int] = {}  # of the grams so far, the latest of each

    @property
    def kept(self) -> int:
        """Tokens up to the end of the second period."""
        return len(self.ids) - self.repeated + self.period

    def add(self, token: int) -> bool:
        """Take the next token; tell whether the text goes in circles now."""
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
    """Count the tokens to keep of a finished text: all of them if it does not go in circles."""
    watch = LoopWatch()
    return next((watch.kept for token in ids if watch.add(token)), len(ids))
