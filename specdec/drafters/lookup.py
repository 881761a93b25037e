"""Prompt lookup: proposes what followed the last tokens earlier in the same text; needs no training.

Earlier occurrences of the root's token are ranked by the length of the match before it, then by recency. Continuations
of the best become one tree, in which equal beginnings share nodes. Nodes that are unlikely to be worth their cost are
left out, so weak matches cost little and strong ones reach far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec_kernels import beam_parents

from ..model.target import Target
from ..state import State
from .parts.calibration import Calibration, calibration_of
from .parts.ranges import check_between, check_shares
from .protocol import Budget, Drafter, Proposals


@dataclass(frozen=True, slots=True)
class LookupConfig:
    """Settings of prompt lookup."""

    places: int = 4
    """Most earlier occurrences used, 1 to 64."""
    length: int = 15
    """Most tokens taken after an occurrence, 1 to 64."""
    min_prob: float | None = None
    """Least acceptance probability of a proposed node, above 0 to 1; None derives it from the cost table."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        check_between(self, 1, 64, "places", "length")
        check_shares(self, "min_prob")


class LookupDrafter(Drafter):
    """Drafts from the row's own text."""

    def __init__(self, config: LookupConfig | None = None) -> None:
        """Create a drafter with the default or the given configuration."""
        self.config = config or LookupConfig()
        self.calibration: Calibration = calibration_of("lookup")
        # Measured probability that the next token follows a match of 1, 2, … tokens, and its decay per further place.
        self._follows = torch.tensor(self.calibration.tables["follows"]).log()
        self._later_place = math.log(self.calibration.tables["later_place"])

    def start(self, state: State) -> None:
        """Copy the table to the device now, as a copy during a round would block the host."""
        self._follows = self._follows.to(state.text.ids.device)

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Propose the continuations of the longest, then latest matches."""
        config, device = self.config, state.text.ids.device
        length = min(config.length, budget.depth)
        places = max(state.cache.host_lengths[row] for row in state.rows.host)
        width = min(config.places, places)
        if length == 0:
            return Proposals.none(len(state.rows.host), device)
        text = state.text.ids[state.rows.ids, : places + 1]  # [B, P + 1]; a row ends in its root
        root = state.lengths[:, None]  # [B, 1]
        place = torch.arange(places, device=device)
        most = len(self._follows)
        matched = torch.where(place < root, matches(text, root, most)[:, :-1], 0)  # [B, P]

        # Longer matches first, then later places: one unique key per place.
        best, at = (matched * places + place).topk(width, 1)  # [B, W]
        agreed = best.div(places, rounding_mode="floor")
        step = torch.arange(length, device=device)
        columns = at[..., None] + 1 + step  # [B, W, L]
        tokens = text.gather(1, columns.clamp(max=places).flatten(1))

        # Each correct token makes the match one longer.
        each = self._follows[(agreed[..., None] - 1 + step).clamp(0, most - 1)]
        rank = torch.arange(width, device=device)[:, None]
        scores = each.cumsum(-1) + rank * self._later_place
        valid = (columns <= root[..., None]) & (agreed > 0)[..., None]
        valid &= scores >= budget.least_score(config.min_prob, self.calibration)
        return Proposals(
            tokens=tokens,
            parents=beam_parents(columns),
            scores=scores.flatten(1),
            valid=valid.flatten(1),
            source=rank.expand(-1, length).flatten().expand_as(tokens),
            spent=budget.spent(self),
        )


def matches(text: Tensor, root: Tensor, most: int) -> Tensor:
    """Count how many tokens agree backwards from each place and from the root.

    Args:
        text: `[B, P]` int64.
        root: `[B, 1]` int64, the column of each row's last token.
        most: largest count.

    Returns:
        `[B, P]` int64, 0 to `most`.
    """
    windows = F.pad(text, (most - 1, 0), value=-1).unfold(1, most, 1).flip(-1)  # [B, P, most]
    tail = windows.gather(1, root[..., None].expand(-1, -1, most))  # [B, 1, most]
    return ((windows == tail) & (tail >= 0)).long().cumprod(-1).sum(-1)


def new_drafter(target: Target, **settings: Any) -> LookupDrafter:
    """Create the drafter; `settings` are fields of `LookupConfig`."""
    return LookupDrafter(LookupConfig(**settings))
