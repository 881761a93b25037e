"""Prefill: reads prompts in order, all at once or each as soon as a cache row is free."""

from __future__ import annotations

from collections import deque

from .model.cache import Rows
from .model.passed import Listener, Tap, Verified
from .model.target import Target
from .state import State


class Prompts:
    """The queue of prompts that wait for prefill."""

    def __init__(self, state: State, *, copies: int = 1) -> None:
        """Queue all rows of a state.

        Args:
            state: its cache has as many rows as texts, or fewer; then texts wait for a free row.
            copies: rows per prompt; rows that start together read it once.
        """
        self.state, self.copies = state, copies
        self.waiting = deque(state.rows.host)
        """Rows that have not started, in order."""
        self.begun = False
        """Whether any row has started."""
        state.rows = Rows.of([], state.text.ids.device)

    @property
    def may_begin(self) -> bool:
        """Whether a row waits and a cache row is free."""
        return bool(self.waiting) and len(self.state.rows.host) < self.state.cache.shape[2]

    def read(self, target: Target, tap: Tap | None, listener: Listener | None = None) -> Verified:
        """Prefill as many waiting rows as there are free cache rows; until `State.open` the state holds only these.

        Returns:
            Logits `[B, V]` and hidden states `[B, E]` after each row's prompt, and the hidden states that a listener
            asked for.
        """
        state, cache, device = self.state, self.state.cache, self.state.text.ids.device
        taken = {cache.row_of(row) for row in state.rows.host}
        free = [row for row in range(cache.shape[2]) if row not in taken]
        rows = [self.waiting.popleft() for _ in free[: len(self.waiting)]]
        if cache.places is not None:
            cache.places.give(rows, free[: len(rows)])
        state.begin(Rows.of(rows, device))
        if self.begun:
            cache.clear(state.rows)
        first = {row // self.copies: row for row in reversed(rows)}
        reading = Rows.of([row for row in rows if first[row // self.copies] == row], device)
        known = cache.host_lengths[rows[0]]
        lengths = [len(state.text.host[row]) - known for row in reading.host]
        ids = state.text.ids[reading.ids, known : known + max(lengths)]
        said = target.prefill(ids, lengths, cache, tap, reading, listener)
        if len(reading.host) < len(rows):
            readers = [first[row // self.copies] for row in rows]
            cache.share_prompts(state.rows, readers)
            places = [reading.host.index(reader) for reader in readers]
            said = said.select(Rows.of(places, device).ids)
        if cache.places is None:
            cache.texts = state.text.host
        self.begun = True
        return said


def check_texts(texts: list[list[int]], target: Target, name: str) -> None:
    """Raise ValueError unless a target can read these token ids; `name` is the caller's argument."""
    if not texts:
        raise ValueError(f"{name}: expected at least one, got none")
    vocabulary, limit = target.config.vocab_size, target.position_limit
    for row, ids in enumerate(texts):
        if not ids:
            raise ValueError(f"{name}: expected at least one token, got none in row {row}")
        if len(ids) >= limit:
            raise ValueError(
                f"{name}: expected fewer tokens than the model's {limit} positions, got {len(ids)} in row {row}"
            )
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise ValueError(
                f"{name}: expected ids from 0 to {vocabulary - 1}, got {min(ids)} to {max(ids)} in row {row}"
            )


def check_rows_at_once(most: int | None, rows: int, drafter: object) -> None:
    """Check `rows_at_once`.

    Raises:
        TypeError: if rows wait and the drafter has no method `join`.
        ValueError: if `most` is below 1.
    """
    if most is None:
        return
    if most < 1:
        raise ValueError(f"rows_at_once: expected at least 1, got {most}")
    if most < rows and not hasattr(drafter, "join"):
        raise TypeError(
            f"drafter: expected one with a method join, as rows_at_once is {most}, got {type(drafter).__name__} without it"
        )
