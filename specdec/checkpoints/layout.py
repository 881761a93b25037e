"""Checkpoint layouts."""

from __future__ import annotations

from enum import StrEnum


class Layout(StrEnum):
    """A layout that drafters can be exported to."""

    own = "own"
    apple = "apple"
    kangaroo = "kangaroo"
    medusa = "medusa"
    eagle3 = "eagle3"
    speculators = "speculators"
