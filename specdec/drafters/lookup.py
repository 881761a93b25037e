"""Lookup: what followed the last few tokens earlier in the text may follow again; nothing to train.

Earlier places that end in the same tokens are ranked by how many agree, then by how recent they are. Their
continuations become one tree, so places that go on alike share nodes, and the tree is cut where a node is unlikely
to be worth its cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..state import State
from ..tree import Accepted, TokenTree
from .protocol import Budget, Proposals


@dataclass(frozen=True, slots=True)
class LookupConfig:
    """How far to look and how much to trust."""

    max_match: int = 8
    """Most tokens compared backwards from the root."""
    min_match: int = 2
    """Fewest that must agree."""
    places: int = 4
    """Most earlier places followed."""
    length: int = 12
    """Most tokens taken from a place."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        for name, low, high in (
            ("max_match", 1, 64), ("min_match", 1, self.max_match), ("places", 1, 64), ("length", 1, 64)
        ):  # fmt: skip
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"{name}: expected {low} to {high}, got {value}")


class LookupDrafter:
    """Drafts from the row's own text."""

    def __init__(self, config: LookupConfig | None = None) -> None:
        """Take the defaults or a configuration."""
        self.config = config or LookupConfig()

    def start(self, state: State, hidden: Tensor) -> None:
        """Do nothing: the text is all it needs."""

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Propose what followed the longest and latest matches."""
        config = self.config
        length = min(config.length, budget.depth)
        text = state.text[state.rows.index]  # [B, columns]
        ends = state.lengths[:, None]  # the root is the last known token
        place = torch.arange(int(max(state.cache.host_lengths)), device=text.device)
        matched = self._matched(text, ends, place)  # [B, P]

        # Longer matches first, later places first among equals: one key, distinct per place.
        usable = (matched >= config.min_match) & (place < ends)
        rank = torch.where(usable, matched * len(place) + place, -1)
        best, at = rank.topk(min(config.places, len(place)), 1)  # [B, W]
        columns = at[..., None] + torch.arange(1, length + 1, device=text.device)
        tokens = text.gather(1, columns.flatten(1).clamp(max=text.shape[1] - 1))
        valid = (columns <= ends[..., None]) & (best >= 0)[..., None]
        ...
