"""Drafters: methods that propose tokens for the target to verify."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..host.lazy import lazily

if TYPE_CHECKING:
    from .lookup import LookupConfig, LookupDrafter
    from .mixed import MixedDrafter
    from .names import AUTO, DRAFTERS, check_drafter_name, chosen, load_drafter
    from .plain import PlainDrafter
    from .protocol import Budget, Drafter, Proposals
    from .rest import RestConfig, RestDrafter
    from .suffix import SuffixConfig, SuffixDrafter

__all__ = [
    "AUTO",
    "DRAFTERS",
    "Budget",
    "Drafter",
    "LookupConfig",
    "LookupDrafter",
    "MixedDrafter",
    "PlainDrafter",
    "Proposals",
    "RestConfig",
    "RestDrafter",
    "SuffixConfig",
    "SuffixDrafter",
    "check_drafter_name",
    "chosen",
    "load_drafter",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "lookup": ["LookupConfig", "LookupDrafter"],
        "mixed": ["MixedDrafter"],
        "names": ["AUTO", "DRAFTERS", "check_drafter_name", "chosen", "load_drafter"],
        "plain": ["PlainDrafter"],
        "protocol": ["Budget", "Drafter", "Proposals"],
        "rest": ["RestConfig", "RestDrafter"],
        "suffix": ["SuffixConfig", "SuffixDrafter"],
    },
    renamed={"NoDrafter": "PlainDrafter"},
)
