"""Lookahead decoding: the target generates n-grams beside the text, which are proposed when their first token occurs.

    root ── L0 ── L0 ── L0          a window of N - 1 levels of W tokens; each level was written
      │      │     │     │          after the one before it, one round later (Jacobi iteration)
      L1    L1    L1    L1
      │      │     │     │
     new    new   new   new         the target's tokens of this round: W n-grams of N tokens are complete

The window runs in the same pass as the tree and never enters the cache. Every complete n-gram is stored in its row's
pool under its first token; the n-grams under the root's token are proposed. The window advances by one level per round,
however many tokens were accepted.

Source: arXiv 2402.02057.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from specdec_kernels import beam_parents

from ..model.cache import Rows
from ..model.passed import SideNodes, Verified
from ..model.target import Target
from ..sampling import most_likely
from ..state import State
from ..tree import Accepted, TokenTree
from .parts.calibration import Calibration, calibration_of
from .parts.lookahead_window import LookaheadConfig, Row, Windows, level_sizes, window
from .protocol import Budget, Drafter, Proposals

__all__ = ["LookaheadConfig", "LookaheadDrafter"]


class LookaheadDrafter(Drafter):
    """Drafts n-grams that the target has generated in its window."""

    def __init__(self, config: LookaheadConfig | None = None) -> None:
        """Create a drafter with the default or the given configuration."""
        self.config = config or LookaheadConfig()
        self.side_nodes = self.config.side_nodes
        length, guesses = self.config.ngram - 1, self.config.guesses
        self.calibration: Calibration = calibration_of("lookahead")
        # Measured accuracy of each guess's first token (newest guess first), and of later tokens after a correct one.
        rights, nexts = (self.calibration.tables[name] for name in ("first", "next"))
        rank = torch.arange(guesses).clamp(max=len(rights) - 1)
        step = torch.arange(1, length).clamp(max=len(nexts)) - 1
        first = torch.tensor(rights).log()[rank][:, None]
        later = torch.tensor(nexts).log()[step].expand(guesses, -1)
        self._scores = torch.cat([first, later], 1).cumsum(1)  # [G, L]
        self._windows: dict[int, tuple[Tensor, Tensor]] = {}

    def start(self, state: State) -> None:
        """Create a window per row, and copy constants to the device."""
        device, rows = state.text.ids.device, state.rows.host
        state.memory[self] = Windows({row: Row(self.config, state.text.host[row]) for row in rows})
        self._scores = self._scores.to(device)
        self._windows = {
            filled: window(level_sizes(self.config, filled), device)
            for filled in range(1, self.config.ngram)
        }

    def join(self, state: State, rows: Rows) -> None:
        """Create windows for rows that start; all windows of a pass have the same number of levels."""
        windows: Windows = state.memory[self]
        windows.advance()
        windows.rows = {row: windows.rows[row] for row in state.rows.host if row in windows.rows}
        levels = max((len(row.levels) for row in windows.rows.values()), default=1)
        for row in rows.host:
            windows.rows[row] = Row(self.config, state.text.host[row], levels)

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Propose the n-grams of each row's root, and request the next level of the window as side nodes."""
        config, length = self.config, self.config.ngram - 1
        windows: Windows = state.memory[self]
        windows.advance()
        if budget.depth == 0:  # then the window is not worth its nodes either
            return Proposals.none(len(state.rows.host), state.text.ids.device, budget.spent(self))
        nothing = (-1,) * length
        numbers = []
        for at in state.rows.host:
            row, text = windows.rows[at], state.text.host[at]
            if config.text_ngrams:
                row.read(text)
            guesses = row.guesses(text[-1])
            guesses += [nothing] * (config.guesses - len(guesses))
            numbers.append([*chain(*row.levels, *guesses)])
        filled = len(row.levels)  # equal in all rows
        depth, sees = self._windows[filled]
        least = budget.least_score(config.min_prob, self.calibration)
        moved = torch.tensor(numbers).to(state.text.ids.device, non_blocking=True)  # [B, S + G L]
        side, tokens = moved.split([len(depth), config.guesses * length], 1)
        beams = tokens.view(-1, config.guesses, length)
        source = torch.arange(config.guesses, device=tokens.device)[:, None].expand(-1, length)
        return Proposals(
            tokens=tokens.clamp(min=0),
            parents=beam_parents(beams),
            scores=self._scores.flatten().expand_as(tokens),
            valid=((beams >= 0) & (self._scores >= least)).flatten(1),
            source=source.flatten().expand_as(tokens),
            side=SideNodes(
                side,
                # Clamped to positions that the text can reach: some models' rotations depend on the largest one.
                torch.minimum(depth, budget.row_depth.clamp(min=0)[:, None]),
                sees,
                wanted=level_sizes(config, filled)[-1],
            ),
            spent=budget.spent(self),
        )

    def observe(
        self, state: State, tree: TokenTree, accepted: Accepted, verified: Verified
    ) -> None:
        """Keep the target's tokens after the last levels; the next draft advances the windows."""
        if verified.side_logits is None:  # no side nodes were requested
            return
        roots = {row: state.text.host[row][-1] for row in state.rows.host}
        # Non-blocking: the host reads it after waiting for the round's tokens, whose copy starts later.
        new = most_likely(verified.side_logits).to("cpu", non_blocking=True)
        state.memory[self].heard = roots, new


def new_drafter(target: Target, sizes: str = "", **settings: Any) -> LookaheadDrafter:
    """Create the drafter.

    Args:
        target: the target.
        sizes: window, n-gram and guesses as `W/N/G`, such as the authors' `7/5/7`; empty for the defaults.
        settings: fields of `LookaheadConfig`.

    Raises:
        ValueError: if `sizes` has another form, or a setting is out of range.
    """
    if sizes:
        parts = sizes.split("/")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"lookahead: expected W/N/G, such as 7/5/7, got {sizes!r}")
        settings = (
            dict(zip(("window", "ngram", "guesses"), map(int, parts), strict=True)) | settings
        )
    return LookaheadDrafter(LookaheadConfig(**settings))
