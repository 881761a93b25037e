"""Streaming: token columns for transformers' results and streamers, and text for a terminal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from ..pickers import Recorded
from ..state import Emitted


class Columns:
    """The new tokens of a batch whose rows have different lengths."""

    def __init__(self, rows: int, pad: int, streamer: BaseStreamer | None) -> None:
        """Create empty columns.

        Args:
            rows: number of rows.
            pad: token id that fills a row after its end.
            streamer: receives each column, `[rows]` int64 on the CPU, as soon as all rows have reached it.
        """
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.going = set(range(rows))
        self.pad, self.streamer, self.streamed = pad, streamer, 0

    def add(self, emitted: list[Emitted]) -> None:
        """Add the tokens of a round."""
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
        """End the streamer, and return all tokens, `[rows, T]` int64."""
        if self.streamer is not None:
            self.streamer.end()
        most = self._longest
        return torch.tensor([ids + [self.pad] * (most - len(ids)) for ids in self.tokens])

    def recorded(self, said: list[list[Recorded]] | None, name: str) -> tuple[Tensor, ...]:
        """Return one field of the recorded outputs, per column `[rows, V]`; zeros after a row's end."""
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
    """Incremental detokenizer; an incomplete character is held back until its bytes are complete."""

    def __init__(self, tokenizer: Any) -> None:
        """Create a detokenizer without text."""
        self.tokenizer = tokenizer
        self.pending: list[int] = []
        self.shown = ""

    def add(self, token: int) -> str:
        """Return the text that a token adds; empty while a character is incomplete."""
        self.pending.append(token)
        text = self.tokenizer.decode(self.pending, skip_special_tokens=True)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new: str = text[len(self.shown) :]
        self.shown = text
        if new.endswith("\n"):  # text before a line end does not change any more
            self.pending, self.shown = [], ""
        return new
