"""The window and the pool of Lookahead decoding, one of each per row, on the host."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...limits import MAX_NODES
from .ranges import check_between, check_shares

Ngram = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LookaheadConfig:
    """Settings of Lookahead decoding. The authors use W/N/G = 7/5/7 for models of 7B parameters."""

    window: int = 2
    """W, tokens per level, 1 to 128."""
    ngram: int = 3
    """N, tokens per n-gram, 3 to 16; the first is the key, so N - 1 are proposed."""
    guesses: int = 3
    """G, most n-grams kept and proposed per key, 1 to 64."""
    text_ngrams: bool = True
    """Whether n-grams of the text, prompt included, are added to the pool too."""
    min_prob: float | None = None
    """Least acceptance probability of a proposed node, above 0 to 1; None derives it from the cost table."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range, or if the window does not fit into a pass."""
        check_between(self, 1, 128, "window")
        check_between(self, 3, 16, "ngram")
        check_between(self, 1, 64, "guesses")
        check_shares(self, "min_prob")
        if (nodes := self.side_nodes) >= MAX_NODES:
            raise ValueError(
                f"window: expected a window of fewer than {MAX_NODES} nodes beside the root, got {nodes} "
                f"of window={self.window} and ngram={self.ngram}"
            )

    @property
    def side_nodes(self) -> int:
        """Nodes of the widest window; a window that is still filling may be the widest."""
        return max(sum(level_sizes(self, filled)) for filled in range(1, self.ngram))


def level_sizes(config: LookaheadConfig, filled: int) -> list[int]:
    """Return the sizes of the first `filled` of N - 1 levels; each round that fills a level shortens the others by a token."""
    size = config.window + config.ngram - 1 - filled
    return [size - 1, *[size] * (filled - 1)]


class Row:
    """One row's window and pool, on the host."""

    def __init__(self, config: LookaheadConfig, prompt: Sequence[int], levels: int = 1) -> None:
        """Fill the first levels with tokens of the prompt, drawn deterministically."""
        self.config = config
        draw = random.Random(0)
        self.levels = [draw.choices(prompt, k=count) for count in level_sizes(config, levels)]
        """The tokens of each level of the window."""
        self.pool: dict[int, OrderedDict[Ngram, None]] = {}
        """By first token, the other N - 1 tokens of each n-gram, the oldest first."""
        self._read = 0

    @property
    def full(self) -> bool:
        """Whether all levels are filled, so that a round completes n-grams."""
        return len(self.levels) == self.config.ngram - 1

    def read(self, text: Sequence[int]) -> None:
        """Add the n-grams that end in new tokens of the text to the pool."""
        size = self.config.ngram
        for end in range(max(self._read, size - 1), len(text)):
            self.add(text[end - size + 1], tuple(text[end - size + 2 : end + 1]))
        self._read = len(text)

    def add(self, key: int, ngram: Ngram) -> None:
        """Add an n-gram as the newest of its key; beyond G the oldest is dropped."""
        known = self.pool.setdefault(key, OrderedDict())
        known[ngram] = None
        known.move_to_end(ngram)
        if len(known) > self.config.guesses:
            known.popitem(last=False)

    def guesses(self, root: int) -> list[Ngram]:
        """Return the n-grams of a token, the newest first."""
        return list(reversed(self.pool.get(root, ())))

    def advance(self, root: int, new: list[int]) -> None:
        """Add the level `new`, which the target generated after the last one, and advance the window."""
        levels = self.levels
        if not self.full:
            # The target generated nothing before the first token of the first level.
            levels.append([*new[:1], *new] if len(levels) == 1 else new)
            self.levels = [level[1:] for level in levels]
            return
        columns = zip(*levels[1:], new, strict=True)
        for key, ngram in zip([root, *levels[0]], columns, strict=True):
            self.add(key, ngram)
        self.levels = [levels[1][1:], *levels[2:], new]


class Windows:
    """The windows of all rows, and levels that the target has generated but the rows have not taken yet."""

    def __init__(self, rows: dict[int, Row]) -> None:
        """Create windows with no level pending."""
        self.rows = rows
        self.heard: tuple[dict[int, int], Tensor] | None = None
        """Rows with their roots, and the pending level of each, `[B, W]` int64 on the host."""

    def advance(self) -> None:
        """Give each row its pending level."""
        if self.heard is not None:
            roots, new = self.heard
            for (row, root), level in zip(roots.items(), new.tolist(), strict=True):
                self.rows[row].advance(root, level)
        self.heard = None


def window(sizes: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute depths and attention mask of a window after a root.

    Args:
        sizes: sizes of its levels.
        device: device of the results.

    Returns:
        Depths `[S]` int64, and the mask `[S, S]` bool. A node of the first level sees the first level up to itself; a
        node of a later level sees the first level up to its column, and the levels above it in its column.
    """
    # The root takes column 0 of the first level; the level's tokens follow it.
    level = torch.cat([torch.full((size,), at) for at, size in enumerate(sizes)])
    column = torch.cat([torch.arange(size) + (at == 0) for at, size in enumerate(sizes)])
    first = (level == 0) & (column <= column[:, None])
    above = (level > 0) & (level <= level[:, None]) & (column == column[:, None])
    return (level + column).to(device), (first | above).to(device)
