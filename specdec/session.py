"""A target, a drafter and their texts: the loop for whoever holds token ids, round by round."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from .costs.measure import costs_of
from .costs.spending import Spending
from .costs.table import Costs, name_of, parts_of
from .decode import decode
from .drafters import Budget, Drafter, load_drafter
from .host.locks import lock_of
from .limits import MAX_NODES, caps, check_max_nodes
from .load import follow_changes
from .metrics import Metrics
from .model.cache import TreeCache
from .model.memory import Needs, enough_memory, gigabytes
from .model.passed import Listener
from .model.target import Target
from .observer import OnRound
from .pickers import Greedy, Picker
from .prompts import Prompts, check_rows_at_once, check_texts
from .row_statistics import Statistics
from .state import Emitted, State, Stops
from .text import Text, shared_length


@dataclass(slots=True)
class Generation:
    """What was written, and how."""

    tokens: list[list[int]]
    """New tokens per prompt, the end-of-text token included."""
    metrics: Metrics = field(default_factory=Metrics)
    statistics: Statistics = field(default_factory=Statistics)
    """What drafting did, per text."""


class Session:
    """A target, a drafter and the text they share; a prompt that continues it is read from where it is new."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter | str | os.PathLike[str] = "auto",
        *,
        max_nodes: int | None = None,
        costs: Costs | None = None,
        guard: bool = True,
        cache: TreeCache | None = None,
    ) -> None:
        """Begin without text, or where an earlier session's cache ends.

        Args:
            target: from `load_target`.
            drafter: a drafter, or a name or folder as in `load_drafter`.
            max_nodes: most nodes verified per row and round, 1 to 256, the root included; None for what pays by the
                cost table, and for 16 with a drafter that has no calibration.
            costs: the cost table, from `read_costs`; None for this machine's, which is measured where it is not known.
            guard: whether drafting rests while, by the cost table, it does not pay; False to draft in every round.
            cache: of another session with this target and drafter, which ends with it.

        Raises:
            TypeError: if the drafter is something else.
            ValueError: if it cannot be loaded, `max_nodes` is out of range, or `costs` has no times of it.
        """
        check_max_nodes(max_nodes)
        if isinstance(drafter, str | os.PathLike):
            drafter = load_drafter(drafter, target)
        if isinstance(drafter, type) or not hasattr(drafter, "draft"):
            raise TypeError(f"drafter: expected a name, a folder or a drafter, got {drafter!r}")
        self.target = target
        self.drafter: Drafter = drafter
        if getattr(drafter, "calibration", None) is None:
            costs = None
        elif costs is None:
            costs = costs_of(target, drafter)
        self.costs, self._asked_nodes, self._guarded = costs, max_nodes, guard
        self.max_nodes = self._spending().most_nodes
        """Most nodes of a row's tree."""
        # Drafters of callers need not inherit from ours.
        self.pass_nodes = self.max_nodes + getattr(drafter, "side_nodes", 0)
        """Most nodes per row in one pass, those that never enter the cache included."""
        if self.pass_nodes > MAX_NODES:
            raise ValueError(
                f"max_nodes: expected at most {MAX_NODES - self.pass_nodes + self.max_nodes} beside the "
                f"{self.pass_nodes - self.max_nodes} side nodes of {type(drafter).__name__}, got {self.max_nodes}"
            )
        self._listener: Listener | None = getattr(drafter, "listener", None)
        own = 0 if self._listener is None else self._listener.nodes
        self.tree_nodes = max(self.pass_nodes, own)
        """Most nodes per row behind the text, those of a draft included."""
        self.cache = cache
        self.memory: dict[object, Any] = {} if cache is None else cache.memory
        """What each drafter keeps from one text to the next, by the drafter itself."""
        self._latest: object = None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos_token_ids: Iterable[int] = (),
        picker: Picker | None = None,
        stops: Stops | None = None,
        copies: int = 1,
        rows_at_once: int | None = None,
        max_nodes: int | Sequence[int] | None = None,
        metrics: Metrics | None = None,
        on_round: OnRound | None = None,
    ) -> Generation:
        """Write until each row ends; arguments and errors as in `stream`."""
        generation = Generation([[] for _ in range(len(prompts) * copies)], metrics or Metrics())
        for emitted in self.stream(
            prompts,
            max_new_tokens=max_new_tokens,
            eos_token_ids=eos_token_ids,
            picker=picker,
            stops=stops,
            copies=copies,
            rows_at_once=rows_at_once,
            max_nodes=max_nodes,
            metrics=generation.metrics,
            statistics=generation.statistics,
            on_round=on_round,
        ):
            for e in emitted:
                generation.tokens[e.row] += e.tokens
        return generation

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos_token_ids: Iterable[int] = (),
        picker: Picker | None = None,
        stops: Stops | None = None,
        copies: int = 1,
        rows_at_once: int | None = None,
        max_nodes: int | Sequence[int] | None = None,
        metrics: Metrics | None = None,
        statistics: Statistics | None = None,
        on_round: OnRound | None = None,
    ) -> Iterator[list[Emitted]]:
        """Write, and hand out what each round adds.

        Args:
            prompts: token ids per row, of any lengths. As many prompts as the session has texts, each beginning with
                its text so far, are read from the first new token on.
            max_new_tokens: most new tokens per row; fewer where the model's positions end.
            eos_token_ids: tokens after which a row ends.
            picker: takes tokens from what the target says, `PathPicker` or `TreeSampler` to draw them; None for the best.
            stops: tells after which further tokens a row ends.
            copies: texts per prompt, which is read once; row `p * copies + c` is copy c of prompt p.
            rows_at_once: most rows written at once, and so held in memory; the others wait, and begin in their order
                as rows end. None for all. Where rows wait, all prompts are read from the beginning, once for the
                copies that begin together.
            max_nodes: a cap on the nodes verified per row and round in this call, 1 to 256, or one per text; 1 drafts
                nothing, None leaves it to the session.
            metrics: added to as the text is written.
            statistics: filled as the text is written, with what drafting did for each text.
            on_round: told what each prefill and each round did.

        Returns:
            Per prefill and round, what each unfinished row gained. A stream that is continued after a newer one began, or while
            another thread uses the session, raises RuntimeError: they share one cache.

        Raises:
            MemoryError: while the text is written, if there is not enough of it.
            TypeError: if rows wait and the drafter has no method `join`.
            ValueError: if there is no prompt, a prompt is empty, holds ids outside the vocabulary or fills the
                model's positions, `max_new_tokens`, `copies` or `rows_at_once` is below 1, or a cap is out of range or
                not one per text.
        """
        texts = [list(prompt) for prompt in prompts]
        check_texts(texts, self.target, "prompts")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
        if copies < 1:
            raise ValueError(f"copies: expected at least 1, got {copies}")
        check_rows_at_once(rows_at_once, len(texts) * copies, self.drafter)
        metrics = Metrics() if metrics is None else metrics
        spending = self._spending(caps(max_nodes, len(texts) * copies))
        if statistics is not None:
            names = [name_of(part) for part in parts_of(self.drafter)]
            statistics.begin(len(texts) * copies, names, spending.guard)
        return self._rounds(
            texts,
            max_new_tokens,
            copies,
            rows_at_once,
            picker or Greedy(),
            spending,
            metrics,
            statistics,
            on_round,
            eos_token_ids=frozenset(eos_token_ids),
            stops=stops,
        )

    def _rounds(
        self,
        prompts: list[list[int]],
        most: int,
        copies: int,
        rows_at_once: int | None,
        picker: Picker,
        spending: Spending,
        metrics: Metrics,
        statistics: Statistics | None,
        on_round: OnRound | None,
        **ends: Any,
    ) -> Iterator[list[Emitted]]:
        this = object()
        follow_changes(self.target)
        texts = [list(prompt) for prompt in prompts for _ in range(copies)]
        limits = [min(most, self.target.position_limit - len(text)) for text in texts]
        capacity = max(len(text) + limit for text, limit in zip(texts, limits, strict=True))
        rows = min(rows_at_once or len(texts), len(texts))
        cache = self._reusable_cache(texts) if copies == 1 and rows == len(texts) else None
        if cache is None:
            cache = self._new_cache(texts, capacity, rows)
        metrics.lap()
        with self._alone(cache), metrics.stage("prefill"), torch.inference_mode():
            self._latest = cache.stream = this
            self._roll_back(cache, texts, capacity)
            text = Text(texts, limits, margin=self.max_nodes + 1, device=self.target.device)
            state = State(cache, text, sampling=picker.sampling, memory=self.memory, **ends)
            queue = Prompts(state, copies=copies)
        rounds = decode(
            self.target,
            self.drafter,
            picker,
            state,
            queue,
            spending=spending,
            metrics=metrics,
            on_round=on_round,
        )
        while state.rows.host or queue.waiting:
            with self._alone(cache):
                if self._latest is not this or cache.stream is not this:
                    raise RuntimeError(
                        "stream: expected the latest of its session and cache, got one that a newer one ended"
                    )
                rested = spending.guard.resting
                emitted = next(rounds)
            if statistics is not None:
                statistics.count(emitted, rested=rested)
            yield emitted

    def terms(self, rows: int) -> Budget:
        """Return what pays in rounds of so many rows: most nodes, beams, prices; a budget without its depths."""
        return self._spending().terms(rows)

    def _spending(self, row_nodes: Sequence[int] | None = None) -> Spending:
        layers = len(self.target.layer_types)
        return Spending(
            self.drafter,
            self.costs,
            layers=layers,
            max_nodes=self._asked_nodes,
            row_nodes=row_nodes,
            guarded=self._guarded,
        )

    @contextmanager
    def _alone(self, cache: TreeCache) -> Iterator[None]:
        """Let nothing else write into a cache meanwhile: neither another thread nor a callback of this one."""
        lock = lock_of(cache, threading.Lock)
        if not lock.acquire(blocking=False):
            raise RuntimeError(
                "session: expected one call at a time, got one while another is writing"
            )
        try:
            with enough_memory(
                lambda: self._needed(cache),
                "write fewer rows or tokens at once, or load the model in a smaller dtype",
            ):
                yield
        finally:
            lock.release()

    def _needed(self, cache: TreeCache) -> str:
        target, rows = self.target, cache.shape[2]
        needs = Needs.of(target.model, target.dtype, exact=target.exact)
        return (
            f"{gigabytes(needs.cache * rows * cache.slots)} for keys and values of {rows} x {cache.slots} tokens beside "
            f"{gigabytes(needs.weights + needs.prepacked * target.prepacked)} of weights"
        )

    def _reusable_cache(self, texts: list[list[int]]) -> TreeCache | None:
        """Return the session's cache if this target, as it is now, and this drafter have read its texts."""
        cache = self.cache
        reader = (self.target, self.drafter, self.target.changes)
        if cache is None or cache.made_for != reader or cache.shared is not None:
            return None
        if cache.places is not None:
            return None
        return cache if len(texts) == len(cache.texts) else None

    def _roll_back(self, cache: TreeCache, texts: list[list[int]], capacity: int) -> None:
        """Keep the cached tokens that every text begins with, and make room."""
        shared = min(
            (
                shared_length(known, text, length)
                for known, text, length in zip(cache.texts, texts, cache.host_lengths, strict=False)
            ),
            default=0,
        )
        if self._listener is not None and shared:
            shared -= 1  # what it keeps of a token knows the next one, which may be another now
        if capacity > cache.capacity or self.tree_nodes > cache.tree_capacity:
            cache.grow(self._roomy(texts, capacity), self.tree_nodes)
        cache.set_lengths([shared] * len(texts))
        # All that still holds should prefill be interrupted.
        cache.texts = [known[:shared] for known in cache.texts]

    def _new_cache(self, texts: list[list[int]], capacity: int, rows: int) -> TreeCache:
        self.cache = self.target.new_cache(
            rows=rows,
            capacity=self._roomy(texts, capacity),
            tree_capacity=self.tree_nodes,
            texts=None if rows == len(texts) else len(texts),
        )
        self.cache.made_for = (self.target, self.drafter, self.target.changes)
        self.cache.memory = self.memory
        return self.cache

    def _roomy(self, texts: list[list[int]], capacity: int) -> int:
        """Leave a single row, which may be a conversation, room to go on without a larger cache."""
        if len(texts) > 1:
            return capacity
        return max(capacity, min(2 * capacity, self.target.position_limit))


def end_tokens(source: GenerationConfig | int | Sequence[int]) -> list[int]:
    """List the tokens that end a text: those of a generation config, or as they are given."""
    ids = source.eos_token_id if isinstance(source, GenerationConfig) else source
    return [ids] if isinstance(ids, int) else list(ids or [])
