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
    """How wide and how deep the window is. The authors use 7/5/7 for models of 7B."""

    window: int = 2
    """Tokens of a level, W, 1 to 128."""
    ngram: int = 3
    """Tokens of an n-gram, N, 3 to 16; one is the key, so N - 1 are proposed."""
    guesses: int = 3
    """Most n-grams kept per key and proposed at once, G, 1 to 64."""
    text_ngrams: bool = True
    """Whether the n-grams of the text itself, the prompt's first, go into the pool too."""
    min_prob: float | None = None
    """Probability under which a node is not worth verifying, above 0 to 1."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range, or where the window does not fit into a pass."""
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
        """Nodes of the widest window, which may be one that is still filling."""
        return max(sum(level_sizes(self, filled)) for filled in range(1, self.ngram))


def level_sizes(config: LookaheadConfig, filled: int) -> list[int]:
    """Return the sizes of the first `filled` levels, of N - 1; each round that fills one takes a token off the others."""
    size = config.window + config.ngram - 1 - filled
    return [size - 1, *[size] * (filled - 1)]


class Row:
    """One row's window and pool, on the host."""

    def __init__(self, config: LookaheadConfig, prompt: Sequence[int], levels: int = 1) -> None:
        """Begin with tokens of the prompt in the first levels, the same ones for the same prompt."""
        self.config = config
        draw = random.Random(0)
        self.levels = [draw.choices(prompt, k=count) for count in level_sizes(config, levels)]
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


class Windows:
    """The rows of one text, and what was said that they have not taken yet."""

    def __init__(self, rows: dict[int, Row]) -> None:
        """Begin with nothing heard."""
        self.rows = rows
        self.heard: tuple[dict[int, int], Tensor] | None = None
        """Rows with their roots, and the level that the target wrote for each, `[B, W]` int64 on the host."""

    def advance(self) -> None:
        """Let each row take its new level."""
        if self.heard is not None:
            roots, new = self.heard
            for (row, root), level in zip(roots.items(), new.tolist(), strict=True):
                self.rows[row].advance(root, level)
        self.heard = None


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
