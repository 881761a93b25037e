"""`Guard`: pauses drafting while it is slower than plain decoding.

The guard sums each round's loss: the tokens that plain decoding would have generated in the round's time, by the cost
table (not the clock), minus the tokens gained. The sum never falls below zero. Above `MOST` tokens per row, drafting
pauses. While it pauses, each token reduces the sum by `ALLOWED` tokens, and below `AGAIN` drafting is tried again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

# In tokens. Good drafters have runs of misses too: with these bounds no replayed text paused, with 1.0, 0.5 and 0.01
# some did (docs/how/settings.md).
MOST, AGAIN, ALLOWED = 1.5, 0.75, 0.015


class Rest(NamedTuple):
    """A pause of drafting, and its reason."""

    round: int
    """Number of rounds of the call before the pause."""
    gained: int
    """Tokens of all rows since drafting last paid."""
    plain: float
    """Tokens that plain decoding would have generated in the same time, by the cost table."""


@dataclass(slots=True)
class Guard:
    """The guard of one call."""

    lost: float = 0.0
    """Current loss in tokens per row."""
    resting: bool = False
    rests: list[Rest] = field(default_factory=list)
    """All pauses so far."""
    _rounds: int = 0
    _gained: int = 0
    _plain: float = 0.0

    def count(self, gained: int, plain: float, rows: int, *, drafted: bool) -> None:
        """Add a round.

        Args:
            gained: tokens of all rows.
            plain: tokens that plain decoding would have generated in the round's time.
            rows: number of rows in the round.
            drafted: whether nodes besides the roots were verified.
        """
        self._rounds += 1
        if self.resting:
            plain = gained
        self._gained, self._plain = self._gained + gained, self._plain + plain
        allowed = 0.0 if drafted else ALLOWED * gained
        self.lost = max(0.0, self.lost + (plain - gained - allowed) / rows)
        if self.resting:
            self.resting = self.lost > AGAIN
        elif self.lost > MOST:
            self.resting = True
            self.rests.append(Rest(self._rounds, self._gained, self._plain))
        if self.lost == 0:
            self._gained, self._plain = 0, 0.0
