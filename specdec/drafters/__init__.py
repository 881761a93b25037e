"""Drafters: each proposes what may come next, in its own way."""

from __future__ import annotations

from .lookup import LookupConfig, LookupDrafter
from .mixed import MixedDrafter
from .plain import NoDrafter
from .protocol import Budget, Drafter, Proposals

DRAFTERS = {"none": NoDrafter, "lookup": LookupDrafter}


def load_drafter(name: str) -> Drafter:
    """Make a drafter from its name; `a+b` is the union of two.

    Raises:
        ValueError: if a name is unknown.
    """
    parts = name.split("+")
    for part in parts:
        if part not in DRAFTERS:
            raise ValueError(
                f"drafter: expected one of {', '.join(DRAFTERS)} or several joined by '+', got {name!r}"
            )
    drafters: list[Drafter] = [DRAFTERS[part]() for part in parts]
    return drafters[0] if len(drafters) == 1 else MixedDrafter(drafters)


__all__ = [
    "DRAFTERS",
    "Budget",
    "Drafter",
    "LookupConfig",
    "LookupDrafter",
    "MixedDrafter",
    "NoDrafter",
    "Proposals",
    "load_drafter",
]
