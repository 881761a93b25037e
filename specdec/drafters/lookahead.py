"""Lookahead decoding: the target writes n-grams beside the text, and they are drafts when their first token comes.

    root ── L0 ── L0 ── L0          a window of N - 1 levels of W tokens; each level was written
      │      │     │     │          after the one before it, one round later (Jacobi iteration)
      L1    L1    L1    L1
      │      │     │     │
     new    new   new   new         what the target says now: W n-grams of N tokens are complete

The window is run beside the tree and never enters the cache. Every complete n-gram goes into its row's pool under its
first token. The n-grams of the root's token are the proposals. The window moves on by one level per round, however many
tokens were accepted.

Source: arXiv 2402.02057.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from specdec_kernels import beam_parents

from ..limits import MAX_NODES
from ..model.passed import SideNodes, Verified
from ..model.target import Target
from ..sampling import most_likely
from ..state import State
from ..tree import Accepted, TokenTree
from .protocol import Budget, Drafter, Proposals

Ngram = tuple[int, ...]
# How often a guess's first token is right, the latest guess first, and how often the next ones are after a right one.
FIRST = (0.3, 0.15, 0.1, 0.08, 0.06)
NEXT = (0.5, 0.6, 0.7)


@dataclass(frozen=True, slots=True)
class LookaheadConfig:
    """How wide and how deep the window is. The authors use 7/5/7 for models of 7B."""

    window: int = 5
    """Tokens of a level, W, 1 to 128."""
    ngram: int = 4
    """Tokens of an n-gram, N, 3 to 16; one is the key, so N - 1 are proposed."""
    guesses: int = 5
    """Most n-grams kept per key and proposed at once, G, 1 to 64."""
    text_ngrams: bool = True
    """Whether the n-grams of the text itself, the prompt's first, go into the pool too."""
    min_prob: float = 0.05
    """Probability under which a node is not worth verifying, above 0 to 1."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range, or where the window does not fit into a pass."""
        for name, least, most in (("window", 1, 128), ("ngram", 3, 16), ("guesses", 1, 64)):
            if not least <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name}: expected {least} to {most}, got {value}")
        if not 0 < self.min_prob <= 1:
            raise ValueError(f"min_prob: expected above 0 to 1, got {self.min_prob}")
        if (nodes := self.side_nodes) >= MAX_NODES:
            raise ValueError(
                f"window: expected a window of fewer than {MAX_NODES} nodes beside the root, got {nodes} "
                f"of window={self.window} and ngram={self.ngram}"
            )

    @property
    def side_nodes(self) -> int:
        """Nodes of the widest window, which may be one that is still filling."""
        return max(sum(level_sizes(self, filled)) for filled in range(1, self.ngram))


def level_sizes(config: LookaheadConfig, filled: int) -> list[int]:
    """Return the sizes of the first `filled` levels, of N - 1; each round that fills one takes a token off the others."""
    size = config.window + config.ngram - 1 - filled
    return [size - 1, *[size] * (filled - 1)]


class Row:
    """One row's window and pool, on the host."""

    def __init__(self, config: LookaheadConfig, prompt: Sequence[int]) -> None:
        """Begin with tokens of the prompt in the first level, the same ones for the same prompt."""
        self.config = config
        count = level_sizes(config, 1)[0]
        self.levels = [random.Random(0).choices(prompt, k=count)]
        """Level by level the tokens of the window."""
        self.pool: dict[int, OrderedDict[Ngram, None]] = {}
        """By first token the N - 1 others of each n-gram, the least recently written first."""
        self._read = 0

    @property
    def full(self) -> bool:
        """Whether the window has all its levels, so that a round completes n-grams."""
        return len(self.levels) == self.config.ngram - 1

    def read(self, text: Sequence[int]) -> None:
        """Put the n-grams that end in new tokens of the text into the pool."""
        size = self.config.ngram
        for end in range(max(self._read, size - 1), len(text)):
            self.add(text[end - size + 1], tuple(text[end - size + 2 : end + 1]))
        self._read = len(text)

    def add(self, key: int, ngram: Ngram) -> None:
        """Make an n-gram the latest of its key; the oldest goes where there are too many."""
        known = self.pool.setdefault(key, OrderedDict())
        known[ngram] = None
        known.move_to_end(ngram)
        if len(known) > self.config.guesses:
            known.popitem(last=False)

    def guesses(self, root: int) -> list[Ngram]:
        """Return what may follow a token, the latest first."""
        return list(reversed(self.pool.get(root, ())))

    def advance(self, root: int, new: list[int]) -> None:
        """Take the level that the target wrote after the last one, `new`, and move the window on."""
        levels = self.levels
        if not self.full:
            # After the very first level nothing was written before its first token.
            levels.append([*new[:1], *new] if len(levels) == 1 else new)
            self.levels = [level[1:] for level in levels]
            return
        columns = zip(*levels[1:], new, strict=True)
        for key, ngram in zip([root, *levels[0]], columns, strict=True):
            self.add(key, ngram)
        self.levels = [levels[1][1:], *levels[2:], new]


class LookaheadDrafter(Drafter):
    """Drafts the n-grams that the target has written in its window."""

    def __init__(self, config: LookaheadConfig | None = None) -> None:
        """Take the defaults or a configuration."""
        self.config = config or LookaheadConfig()
        self.side_nodes = self.config.side_nodes
        length, guesses = self.config.ngram - 1, self.config.guesses
        rank = torch.arange(guesses).clamp(max=len(FIRST) - 1)
        step = torch.arange(1, length).clamp(max=len(NEXT)) - 1
        first = torch.tensor(FIRST).log()[rank][:, None]
        later = torch.tensor(NEXT).log()[step].expand(guesses, -1)
        scores = torch.cat([first, later], 1).cumsum(1)  # [G, L]
        self._worth = scores >= math.log(self.config.min_prob)
        self._scores = scores
        self._windows: dict[int, tuple[Tensor, Tensor]] = {}

    def start(self, state: State) -> None:
        """Begin a window per row, and copy what does not change to the device."""
        device = state.text.ids.device
        state.memory[self] = {
            row: Row(self.config, state.text.host[row]) for row in state.rows.host
        }
        self._scores, self._worth = self._scores.to(device), self._worth.to(device)
        self._windows = {
            filled: window(level_sizes(self.config, filled), device)
            for filled in range(1, self.config.ngram)
        }

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Propose the n-grams of each row's root, and ask for the next level of the window."""
        config, length = self.config, self.config.ngram - 1
        texts = [state.text.host[row] for row in state.rows.host]
        rows: list[Row] = [state.memory[self][row] for row in state.rows.host]
        nothing = (-1,) * length
        both = []
        for row, text in zip(rows, texts, strict=True):
            if config.text_ngrams:
                row.read(text)
            guesses = row.guesses(text[-1])
            guesses += [nothing] * (config.guesses - len(guesses))
            both.append([*chain(*row.levels, *guesses)])
        depth, sees = self._windows[filled := len(rows[0].levels)]
        moved = torch.tensor(both).to(state.text.ids.device, non_blocking=True)  # [B, S + G L]
        side, tokens = moved.split([len(depth), config.guesses * length], 1)
        beams = tokens.view(-1, config.guesses, length)
        batch = len(rows)
        return Proposals(
            tokens=tokens.clamp(min=0),
            parents=beam_parents(beams),
            scores=self._scores.expand(batch, -1, -1).flatten(1),
            valid=((beams >= 0) & self._worth).flatten(1),
            source=torch.arange(config.guesses, device=tokens.device)
            .repeat_interleave(length)
            .expand(batch, -1),
            side=SideNodes(
                side,
                # Never at a position that the text does not come to: some models' rotations depend on the last one.
                torch.minimum(depth, budget.row_depth.clamp(min=0)[:, None]),
                sees,
                wanted=level_sizes(config, filled)[-1],
            ),
        )

    def observe(
        self, state: State, tree: TokenTree, accepted: Accepted, verified: Verified
    ) -> None:
        """Move the windows on by what the target said after their last levels."""
        assert verified.side_logits is not None
        new = most_likely(verified.side_logits).tolist()
        for row, level in zip(state.rows.host, new, strict=True):
            state.memory[self][row].advance(state.text.host[row][-1], level)


def window(sizes: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Lay out a window behind a root.

    Args:
        sizes: of its levels.
        device: where the results go.

    Returns:
        Depths `[S]` int64 and what each node sees of the window `[S, S]` bool: of the first level all before it; of a
        later one the first level's tokens as far as its own column, and that column.
    """
    # The root stands in the first level's column 0, all its tokens one further.
    level = torch.cat([torch.full((size,), at) for at, size in enumerate(sizes)])
    column = torch.cat([torch.arange(size) + (at == 0) for at, size in enumerate(sizes)])
    first = (level == 0) & (column <= column[:, None])
    above = (level > 0) & (level <= level[:, None]) & (column == column[:, None])
    return (level + column).to(device), (first | above).to(device)


def new_drafter(target: Target, sizes: str = "", **settings: Any) -> LookaheadDrafter:
    """Make the drafter.

    Args:
        target: whose text is drafted.
        sizes: window, n-gram and guesses as `W/N/G`, such as the authors' `7/5/7`; empty for the defaults.
        settings: fields of `LookaheadConfig`.

    Raises:
        ValueError: if `sizes` is something else, or one is out of range.
    """
    if sizes:
        parts = sizes.split("/")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"lookahead: expected W/N/G, such as 7/5/7, got {sizes!r}")
        settings = (
            dict(zip(("window", "ngram", "guesses"), map(int, parts), strict=True)) | settings
        )
    return LookaheadDrafter(LookaheadConfig(**settings))
