"""`Session`: speculative decoding from token ids, with a KV cache that later calls reuse."""

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
    """The result of `Session.generate`."""

    tokens: list[list[int]]
    """New tokens per text, the end-of-text token included."""
    metrics: Metrics = field(default_factory=Metrics)
    statistics: Statistics = field(default_factory=Statistics)
    """Draft and acceptance counts per text."""


class Session:
    """A target model, a drafter and their KV cache; a prompt that extends the cached text is read from its first new token."""

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
        """Create a session with an empty cache, or with the cache of an earlier session.

        Args:
            target: from `load_target`.
            drafter: a drafter, or a name or folder as in `load_drafter`.
            max_nodes: most tree nodes verified per row and round, 1 to 256, the root included. None takes the limit
                from the cost table, or 16 for a drafter without a calibration.
            costs: a cost table from `read_costs`. None uses this machine's table, which is measured if missing.
            guard: pause drafting while the cost table says that it does not pay; False drafts in every round.
            cache: the cache of another session with this target and drafter, which must not be used any more.

        Raises:
            TypeError: if `drafter` is neither a drafter nor a name.
            ValueError: if the drafter cannot be loaded, `max_nodes` is out of range, or `costs` lacks the drafter's times.
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
        # A caller's drafter need not inherit from `Drafter`.
        self.pass_nodes = self.max_nodes + getattr(drafter, "side_nodes", 0)
        """Most nodes per row in one pass, side nodes (which never enter the cache) included."""
        if self.pass_nodes > MAX_NODES:
            raise ValueError(
                f"max_nodes: expected at most {MAX_NODES - self.pass_nodes + self.max_nodes} beside the "
                f"{self.pass_nodes - self.max_nodes} side nodes of {type(drafter).__name__}, got {self.max_nodes}"
            )
        self._listener: Listener | None = getattr(drafter, "listener", None)
        own = 0 if self._listener is None else self._listener.nodes
        self.tree_nodes = max(self.pass_nodes, own)
        """Cache slots per row after the text: the larger of a pass and of a draft."""
        self.cache = cache
        self.memory: dict[object, Any] = {} if cache is None else cache.memory
        """State that each drafter keeps between texts; the key is the drafter."""
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
        """Generate until every row ends; arguments and errors as in `stream`."""
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
        """Generate, and yield the new tokens of each round.

        Args:
            prompts: token ids per row, of any lengths. If there are as many prompts as cached texts and each extends
                its text, only the new tokens are read.
            max_new_tokens: most new tokens per row; fewer where the model's positions end.
            eos_token_ids: tokens that end a row.
            picker: chooses tokens from the target's logits; `PathPicker` or `TreeSampler` to sample, None for greedy.
            stops: further stopping criterion, called for each new token.
            copies: texts per prompt, which is read once; row `p * copies + c` is copy c of prompt p.
            rows_at_once: most rows generated, and held in memory, at the same time; None for all. The others wait and
                start in order as rows end; all prompts are then read from the beginning, once for copies that start together.
            max_nodes: most nodes verified per row and round in this call, 1 to 256, or one number per text; 1 drafts
                nothing, None uses the session's.
            metrics: counts and times are added to it.
            statistics: filled with draft and acceptance counts per text.
            on_round: called after each prefill and each round.

        Returns:
            An iterator: per prefill and round, one `Emitted` per unfinished row. Continuing a stream after a newer one
            started, or while another thread uses the session, raises RuntimeError: they share one cache.

        Raises:
            MemoryError: during generation, if memory runs out.
            TypeError: if rows wait and the drafter has no method `join`.
            ValueError: if there is no prompt, a prompt is empty, has ids outside the vocabulary or fills the model's
                positions, `max_new_tokens`, `copies` or `rows_at_once` is below 1, or `max_nodes` is out of range or
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
                        "stream: expected the newest stream of its session, got one that a newer stream replaced"
                    )
                rested = spending.guard.resting
                emitted = next(rounds)
            if statistics is not None:
                statistics.count(emitted, rested=rested)
            yield emitted

    def terms(self, rows: int) -> Budget:
        """Return the budget of a round with this many rows (most nodes, beams, prices); its depths are not set."""
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
        """Lock a cache against other threads and against callbacks of this one."""
        lock = lock_of(cache, threading.Lock)
        if not lock.acquire(blocking=False):
            raise RuntimeError(
                "session: expected one call at a time, got a second call while the first is running"
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
            f"{gigabytes(needs.cache * rows * cache.slots)} for keys and values of {rows} x {cache.slots} tokens, beside "
            f"{gigabytes(needs.weights + needs.prepacked * target.prepacked)} of weights"
        )

    def _reusable_cache(self, texts: list[list[int]]) -> TreeCache | None:
        """Return the session's cache if it was filled by this target (unchanged since) and this drafter."""
        cache = self.cache
        reader = (self.target, self.drafter, self.target.changes)
        if cache is None or cache.made_for != reader or cache.shared is not None:
            return None
        if cache.places is not None:
            return None
        return cache if len(texts) == len(cache.texts) else None

    def _roll_back(self, cache: TreeCache, texts: list[list[int]], capacity: int) -> None:
        """Keep the cached tokens that all texts share with it, and enlarge the cache if needed."""
        shared = min(
            (
                shared_length(known, text, length)
                for known, text, length in zip(cache.texts, texts, cache.host_lengths, strict=False)
            ),
            default=0,
        )
        if self._listener is not None and shared:
            # A listener's entry for a token depends on the next token, which may differ now.
            shared -= 1
        if capacity > cache.capacity or self.tree_nodes > cache.tree_capacity:
            cache.grow(self._roomy(texts, capacity), self.tree_nodes)
        cache.set_lengths([shared] * len(texts))
        # Still correct if prefill is interrupted.
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
        """Give a single row, which may be a conversation, up to twice the capacity, so that it can go on in this cache."""
        if len(texts) > 1:
            return capacity
        return max(capacity, min(2 * capacity, self.target.position_limit))


def end_tokens(source: GenerationConfig | int | Sequence[int]) -> list[int]:
    """List the end-of-text tokens of a generation config, or those given."""
    ids = source.eos_token_id if isinstance(source, GenerationConfig) else source
    return [ids] if isinstance(ids, int) else list(ids or [])
