"""Whether drafting pays: what a call has lost by it, in tokens that plain decoding would have written meanwhile.

A running sum, by the cost table and not by the clock, that gains do not push below zero: it is what was lost since drafting
last paid. Beyond `MOST` per row drafters rest. A token that is written without a draft may cost `ALLOWED` of one, as looking for
drafts does; so the sum falls while they rest, and below `AGAIN` they are tried again: rarely, as long as they lose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

# A good drafter has runs of misses too: with these bounds no replayed text rested, with 1.0, 0.5 and 0.01 some did (docs/how/settings.md).
MOST, AGAIN, ALLOWED = 1.5, 0.75, 0.015


class Rest(NamedTuple):
    """Why drafting stopped."""

    round: int
    """After so many rounds of the call."""
    gained: int
    """Tokens of all rows since drafting last paid."""
    plain: float
    """Tokens that plain decoding would have written meanwhile, by the cost table."""


@dataclass(slots=True)
class Guard:
    """The account of one call."""

    lost: float = 0.0
    """Tokens per row."""
    resting: bool = False
    rests: list[Rest] = field(default_factory=list)
    """Each time that drafting stopped."""
    _rounds: int = 0
    _gained: int = 0
    _plain: float = 0.0

    def count(self, gained: int, plain: float, rows: int, *, drafted: bool) -> None:
        """Add a round.

        Args:
            gained: tokens of all rows.
            plain: tokens that plain decoding would have written in its time.
            rows: of the round.
            drafted: whether anything was verified but the roots.
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
