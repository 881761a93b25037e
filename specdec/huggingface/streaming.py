"""Tokens as they are kept: the columns that the library returns and streams, and text for a terminal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from ..pickers import Recorded
from ..state import Emitted


class Columns:
    """The new tokens of a batch, whose rows run ahead of each other."""

    def __init__(self, rows: int, pad: int, streamer: BaseStreamer | None) -> None:
        """Begin without tokens.

        Args:
            rows: of the batch.
            pad: stands where a row has ended.
            streamer: gets each column, `[rows]` int64 on the CPU, as soon as all rows have come to it.
        """
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.going = set(range(rows))
        self.pad, self.streamer, self.streamed = pad, streamer, 0

    def add(self, emitted: list[Emitted]) -> None:
        """Take what a round gave."""
        for e in emitted:
            self.tokens[e.row] += e.tokens
            if e.finished:
                self.going.remove(e.row)
        if self.streamer is not None:
            ready = min((len(self.tokens[row]) for row in self.going), default=self._longest)
            for at in range(self.streamed, ready):
                column = [ids[at] if at < len(ids) else self.pad for ids in self.tokens]
                self.streamer.put(torch.tensor(column))
            self.streamed = max(self.streamed, ready)

    def end(self) -> Tensor:
        """Tell the streamer, and return all tokens, `[rows, T]` int64."""
        if self.streamer is not None:
            self.streamer.end()
        most = self._longest
        return torch.tensor([ids + [self.pad] * (most - len(ids)) for ids in self.tokens])

    def recorded(self, said: list[list[Recorded]] | None, name: str) -> tuple[Tensor, ...]:
        """Return one field of what was said, per column `[rows, V]`; zeros where a row had ended."""
        assert said is not None
        columns = []
        for at in range(self._longest):
            rows = [
                getattr(records[at], name) if at < len(tokens) else None
                for records, tokens in zip(said, self.tokens, strict=True)
            ]
            some = next(row for row in rows if row is not None)
            columns.append(torch.stack([torch.zeros_like(some) if r is None else r for r in rows]))
        return tuple(columns)

    @property
    def _longest(self) -> int:
        return max(map(len, self.tokens))


class Detokenizer:
    """Text of tokens as they come; an incomplete character waits for the rest of its bytes."""

    def __init__(self, tokenizer: Any) -> None:
        """Begin without text."""
        self.tokenizer = tokenizer
        self.pending: list[int] = []
        self.shown = ""

    def add(self, token: int) -> str:
        """Return what a token adds to the text, perhaps nothing yet."""
        self.pending.append(token)
        text = self.tokenizer.decode(self.pending, skip_special_tokens=True)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new: str = text[len(self.shown) :]
        self.shown = text
        if new.endswith("\n"):  # a line end settles everything before it
            self.pending, self.shown = [], ""
        return new
