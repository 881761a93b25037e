"""Lookup: what followed the last tokens earlier in the text may follow again; nothing to train.

Earlier places that end in the root's token are ranked by how many tokens before it agree too, then by how recent
they are. The continuations of the best become one tree, in which places that go on alike share nodes. A node that is
unlikely to be worth its cost is left out, so weak matches cost little and strong ones reach far.
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
from .parts.ranges import check_between, check_shares
from .protocol import Budget, Drafter, Proposals

# How often the next token follows a match of 1, 2, … tokens; 90 development prompts of Spec-Bench, the default model.
FOLLOWS = (0.24, 0.55, 0.65, 0.72, 0.78, 0.80, 0.83, 0.93)


@dataclass(frozen=True, slots=True)
class LookupConfig:
    """How much of the past to follow."""

    places: int = 4
    """Most earlier places followed, 1 to 64."""
    length: int = 15
    """Most tokens taken from a place, 1 to 64."""
    discount: float = 0.7
    """How much less likely each further place is than the one before, above 0 to 1."""
    min_prob: float = 0.08
    """Probability under which a node is not worth verifying, above 0 to 1."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        check_between(self, 1, 64, "places", "length")
        check_shares(self, "discount", "min_prob")


class LookupDrafter(Drafter):
    """Drafts from the row's own text."""

    def __init__(self, config: LookupConfig | None = None) -> None:
        """Take the defaults or a configuration."""
        self.config = config or LookupConfig()
        self._follows = torch.tensor(FOLLOWS).log()

    def start(self, state: State) -> None:
        """Copy the table to the device: during a round the host would wait for that."""
        self._follows = self._follows.to(state.text.ids.device)

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Propose what followed the longest and latest matches."""
        config, device = self.config, state.text.ids.device
        length = min(config.length, budget.depth)
        places = max(state.cache.host_lengths[row] for row in state.rows.host)
        width = min(config.places, places)
        if length == 0:
            return Proposals.none(len(state.rows.host), device)
        text = state.text.ids[state.rows.ids, : places + 1]  # [B, P + 1]; a row ends in its root
        root = state.lengths[:, None]  # [B, 1]
        place = torch.arange(places, device=device)
        matched = torch.where(place < root, matches(text, root)[:, :-1], 0)  # [B, P]

        # Longer matches first, later places first among equals: one key that no two places share.
        best, at = (matched * places + place).topk(width, 1)  # [B, W]
        agreed = best.div(places, rounding_mode="floor")
        step = torch.arange(length, device=device)
        columns = at[..., None] + 1 + step  # [B, W, L]
        tokens = text.gather(1, columns.clamp(max=places).flatten(1))

        # Every token that proves right makes the match one longer.
        each = self._follows[(agreed[..., None] - 1 + step).clamp(0, len(FOLLOWS) - 1)]
        rank = torch.arange(width, device=device)[:, None]
        scores = each.cumsum(-1) + rank * math.log(config.discount)
        valid = (columns <= root[..., None]) & (agreed > 0)[..., None]
        valid &= scores >= math.log(config.min_prob)
        return Proposals(
            tokens=tokens,
            parents=beam_parents(columns),
            scores=scores.flatten(1),
            valid=valid.flatten(1),
            source=rank.expand(-1, length).flatten().expand_as(tokens),
        )


def matches(text: Tensor, root: Tensor) -> Tensor:
    """Count how many tokens agree, going back from each place and from the root.

    Args:
        text: `[B, P]` int64.
        root: `[B, 1]` int64, the column of each row's last token.

    Returns:
        `[B, P]` int64, 0 to `len(FOLLOWS)`.
    """
    most = len(FOLLOWS)
    windows = F.pad(text, (most - 1, 0), value=-1).unfold(1, most, 1).flip(-1)  # [B, P, most]
    tail = windows.gather(1, root[..., None].expand(-1, -1, most))  # [B, 1, most]
    return ((windows == tail) & (tail >= 0)).long().cumprod(-1).sum(-1)


def new_drafter(target: Target, **settings: Any) -> LookupDrafter:
    """Make the drafter; `settings` are fields of `LookupConfig`."""
    return LookupDrafter(LookupConfig(**settings))
