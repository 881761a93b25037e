"""The layouts of checkpoints."""

from __future__ import annotations

from enum import StrEnum


class Layout(StrEnum):
    """What a drafter can be written as."""

    own = "own"
    apple = "apple"
    kangaroo = "kangaroo"
    medusa = "medusa"
    eagle3 = "eagle3"
    speculators = "speculators"
