"""Continuous batching: a row that ends starts the next text at once, so no row waits for the longest.

Texts are requested by generators, called *scripts*: a script yields requests and is sent the results. One step runs one
pass without padding, in which each row reads its newest token, or several given tokens. If a text begins like the
previous one of its row, as conversations do, only its new part is read.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from specdec_kernels import pick_tokens

from ..load import follow_changes
from ..model.memory import Needs, enough_memory, gigabytes
from ..model.target import Target
from ..sampling import most_likely
from .loops import LoopWatch
from .row_cache import ZONE, RowCache, RowsPass

# Most given tokens that a row reads per step, while other rows generate.
READ_AT_ONCE = 16
TOP_K = 50

Result = TypeVar("Result")


class Request(NamedTuple):
    """A text to continue."""

    ids: list[int]
    """Token ids, at least one."""
    tokens: int
    """Most new tokens, at least 1."""
    temperature: float
    """0 for greedy; above 0, one of the 50 best tokens is sampled."""
    stream: int
    """Stream of the noise, 0 to 2**32 - 1."""


class Written(NamedTuple):
    """The result of a request."""

    ids: list[int]
    """New tokens; the last one may be an end token."""
    cut: int
    """Number of further tokens that were cut off as a repetition."""


Script = Generator[Request, Written, Result]


class _Row:
    """A script and its current text."""

    def __init__(self, script: Script[Any]) -> None:
        self.script = script
        self.request = Request([], 0, 0.0, 0)
        self.text: list[int] = []
        self.held: list[int] = []
        """The cached tokens."""
        self.watch = LoopWatch()

    def take(self, request: Request) -> None:
        """Start a request."""
        assert request.ids
        self.request, self.text, self.watch = request, list(request.ids), LoopWatch()
        self.hold(self.held)

    def hold(self, held: list[int]) -> None:
        """Keep the cached tokens that the text begins with; its last token is always read for its logits."""
        most = min(len(held), len(self.text) - 1)
        same = next((i for i in range(most) if held[i] != self.text[i]), most)
        self.held = held[:same]

    def add(self, token: int, end_tokens: frozenset[int]) -> Written | None:
        """Add a new token; return the result if it is the last one."""
        self.text.append(token)
        begin, new = len(self.request.ids), len(self.text) - len(self.request.ids)
        looped = self.watch.add(token)
        if not (looped or token in end_tokens or new >= self.request.tokens):
            return None
        kept = self.watch.kept if looped else new
        return Written(self.text[begin : begin + kept], new - kept)


class ContinuousBatch:
    """Rows of one cache, each running one script; rows are sorted by length up to zones."""

    def __init__(
        self,
        target: Target,
        *,
        rows: int,
        capacity: int,
        seed: int,
        end_tokens: frozenset[int],
    ) -> None:
        """Create an empty batch.

        Args:
            target: the target.
            rows: texts generated at the same time.
            capacity: most tokens per text.
            seed: seed of the noise, 0 to 2**64 - 1.
            end_tokens: tokens that end a request.
        """
        self.target, self.capacity, self.seed, self.end_tokens = target, capacity, seed, end_tokens
        self.cache = RowCache(
            layers=len(target.parts.layers),
            rows=rows,
            capacity=capacity,
            dtype=target.dtype,
            device=target.device,
        )
        self.size = rows
        self.rows: list[_Row] = []
        """The cache's rows in use, in order."""

    def run(self, scripts: Iterator[Script[Result]]) -> Iterator[Result]:
        """Run scripts, started in order, and yield each one's result when it ends.

        Raises:
            MemoryError: if memory runs out.
        """
        follow_changes(self.target)
        while len(self.rows) < self.size and (row := (yield from self._next(scripts))):
            self.rows.append(row)
        while self.rows:
            for row, written in self._step():
                try:
                    row.take(row.script.send(written))
                except StopIteration as end:
                    yield end.value
                    self._replace(row, (yield from self._next(scripts)))

    def _next(self, scripts: Iterator[Script[Result]]) -> Generator[Result, None, _Row | None]:
        """Return a row for the next script that makes a request; yield the results of scripts that make none."""
        for script in scripts:
            try:
                row = _Row(script)
                row.take(next(script))
                return row
            except StopIteration as end:
                yield end.value
        return None

    def _replace(self, row: _Row, new: _Row | None) -> None:
        """Replace a row by a new, short one in the last zone, or by none; the other rows move up."""
        hole = self.rows.index(row)
        for begin in range((hole // ZONE + 1) * ZONE, len(self.rows), ZONE):
            zone = range(begin, min(begin + ZONE, len(self.rows)))
            longest = max(zone, key=lambda place: len(self.rows[place].held))
            self._move(longest, hole)
            hole = longest
        if new is None:
            self._move(len(self.rows) - 1, hole)
            self.rows.pop()
        else:
            new.hold(self.rows[hole].held)
            self.rows[hole] = new

    @torch.inference_mode()
    def _move(self, source: int, to: int) -> None:
        if source != to:
            self.cache.move(source, to, len(self.rows[source].held))
            self.rows[to] = self.rows[source]

    def _step(self) -> list[tuple[_Row, Written]]:
        """Run one step of every row; return the results of finished requests."""
        with enough_memory(self._needed, "write fewer texts at once"), torch.inference_mode():
            return self._written()

    def _needed(self) -> str:
        needs = Needs.of(self.target.model, self.target.dtype)
        size = needs.cache * self.size * self.capacity
        return f"{gigabytes(size)} for keys and values of {self.size} x {self.capacity} tokens"

    def _written(self) -> list[tuple[_Row, Written]]:
        hidden = self._read()
        free = [at for at, row in enumerate(self.rows) if len(row.held) == len(row.text)]
        if not free:
            return []
        rows = [self.rows[at] for at in free]
        done = []
        for row, token in zip(rows, self._pick(rows, hidden[free]), strict=True):
            if (written := row.add(token, self.end_tokens)) is not None:
                done.append((row, written))
        return done

    def _read(self) -> Tensor:
        """Read the next tokens of every row; return the last layer's output at each row's last token, `[B, E]`."""
        target, lengths = self.target, [len(row.held) for row in self.rows]
        new = [row.text[len(row.held) :][:READ_AT_ONCE] for row in self.rows]
        counts = [len(tokens) for tokens in new]
        self.cache.current = RowsPass(self.cache, lengths, counts)
        ids = torch.tensor([token for tokens in new for token in tokens], device=target.device)
        hidden = target.run_layers(target.embed(ids[:, None]), self.cache)
        for row, tokens in zip(self.rows, new, strict=True):
            row.held += tokens
        return hidden[[end - 1 for end in accumulate(counts)], 0]

    def _pick(self, rows: list[_Row], hidden: Tensor) -> list[int]:
        """Pick a token for each row of hidden states `[B, E]`."""
        logits = self.target.head(hidden).logits
        picked = most_likely(logits)
        drawn = [at for at, row in enumerate(rows) if row.request.temperature]
        if drawn:
            numbers = [
                (row.request.temperature, row.request.stream, len(row.text))
                for row in (rows[at] for at in drawn)
            ]
            temperatures, streams, positions = (
                torch.tensor(column, device=logits.device) for column in zip(*numbers, strict=True)
            )
            picked[drawn] = pick_tokens(
                logits[drawn].float() / temperatures[:, None],
                seed=self.seed,
                streams=streams,
                positions=positions,
                top_k=TOP_K,
            )
        return picked.tolist()
