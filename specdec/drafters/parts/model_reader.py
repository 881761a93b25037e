"""A model that reads a text along with the target, in a cache of its own, to say what it would write next.

What it has read is certain text alone. The keys and values of a draft lie behind it until the next pass writes over
them, so a draft is forgotten without being rolled back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec_kernels import ancestor_matrix, pack_bits

from ...model.cache import Rows, TreeCache
from ...model.target import Target
from ...state import State


class Reader:
    """A model and its cache, in which texts have the rows that they have in the target's."""

    def __init__(self, model: Target, beside: TreeCache, texts: int) -> None:
        """Begin with nothing read.

        Args:
            model: that reads; its vocabulary's ids are the texts'.
            beside: the target's cache.
            texts: how many.
        """
        self.model, self.changes = model, model.changes
        self.cache = model.new_cache(rows=beside.shape[2], capacity=0, tree_capacity=0, texts=texts)
        self.cache.places = beside.places
        self.texts: list[list[int]] = [[] for _ in range(texts)]
        """What the rows of the cache hold, and perhaps tokens that are not cached."""

    def reads_on(self, state: State) -> bool:
        """Tell whether what was read may still hold: of as many rows, each with its own, by the model as it is now."""
        apart = self.cache.places is None and state.cache.places is None
        alike = len(self.texts) == len(state.text.host)
        return apart and alike and self.changes == self.model.changes

    def start(self, state: State, nodes: int) -> None:
        """Read prompts from where one of them parts from what its row holds; roots are read with the first draft.

        Args:
            state: after prefill.
            nodes: most nodes of a draft.
        """
        texts, cache = state.text.host, self.cache
        known = zip(self.texts, texts, cache.host_lengths, strict=True)
        shared = min(_shared(old, new, cached) for old, new, cached in known)
        self.texts = [old[:shared] for old in self.texts]  # what holds if reading is interrupted
        self._make_room(state, nodes)
        cache.set_lengths([shared] * len(texts))
        self._read_prompts(state, state.rows, shared)

    def join(self, state: State, rows: Rows) -> None:
        """Read the prompts of rows that begin in the places of others."""
        self.cache.clear(rows)
        self._read_prompts(state, rows, 0)

    def _read_prompts(self, state: State, rows: Rows, known: int) -> None:
        """Read prompts of which so many tokens are known; roots are left out."""
        texts, limit = state.text.host, self.model.position_limit
        fits = [len(texts[row]) <= limit for row in rows.host]
        reading = rows.select([at for at, fit in enumerate(fits) if fit])
        beyond = rows.select([at for at, fit in enumerate(fits) if not fit])
        # Beyond its positions nothing more is read, and nothing is drafted.
        self.cache.set_lengths([limit] * len(beyond.host), beyond)
        if not reading.host:
            return
        prompts = [len(texts[row]) - 1 for row in reading.host]
        self.model.prefill(
            self._known(state.text.ids[reading.ids, known : max(prompts)]),
            [prompt - known for prompt in prompts],
            self.cache,
            rows=reading,
        )
        for row in reading.host:
            self.texts[row] = texts[row]  # grows with the text

    def room(self, state: State) -> int:
        """Return how deep the drafts of any row may be before the model's positions end."""
        return self.model.position_limit - min(state.cache.host_lengths[r] for r in state.rows.host)

    def row_room(self, state: State) -> Tensor:
        """`[B]` int64, the same for each row."""
        return self.model.position_limit - state.lengths

    def read(self, state: State) -> Tensor:
        """Read what the rows have gained, their roots included; returns logits `[B, 1, V]` after the roots."""
        cache, rows, last = self.cache, state.rows, self.model.position_limit - 1
        ends = [min(state.cache.host_lengths[row], last) + 1 for row in rows.host]
        # Rows that gained less read stale tokens behind their roots; what is read next is written over those.
        most = max(end - cache.host_lengths[row] for end, row in zip(ends, rows.host, strict=True))
        begins = cache.lengths[rows.ids]
        step = torch.arange(most, device=begins.device)
        tokens = state.text.ids[rows.ids[:, None], begins[:, None] + step]
        seen = (step[:, None] >= step).expand(len(tokens), -1, -1)
        hidden = self._run(tokens, pack_bits(seen), step.expand_as(tokens), rows)
        new_lengths = state.lengths.clamp(max=last) + 1
        roots = (new_lengths - begins - 1).clamp(min=0)
        cache.lengths[rows.ids] = new_lengths
        for end, row in zip(ends, rows.host, strict=True):
            cache.host_lengths[row] = end
        return self._logits(hidden.take_along_dim(roots[:, None, None], 1))

    def after_chain(self, tokens: Tensor, rows: Rows, behind: int) -> Tensor:
        """Read one more token `[B]` of a chain of which `behind` were read; returns logits `[B, 1, V]`."""
        layers = len(self.model.parts.layers)
        hidden = self.model.extend(
            self._known(tokens), self.cache, rows, layers=layers, behind=behind
        )
        return self._logits(hidden[:, :1])

    def after_tree(
        self, tokens: Tensor, parents: Tensor, depth: Tensor, rows: Rows, wanted: int
    ) -> Tensor:
        """Read a whole draft behind the text.

        Args:
            tokens: `[B, K]` int64.
            parents: `[B, K]` int64, of each node the one before it; -1 for the root.
            depth: `[K]` int64, 0 for what follows the root.
            rows: the B rows.
            wanted: so many of the last nodes get logits.

        Returns:
            Logits `[B, wanted, V]`.
        """
        ancestors = pack_bits(ancestor_matrix(parents))
        hidden = self._run(tokens, ancestors, depth.expand_as(tokens), rows)
        return self._logits(hidden[:, -wanted:])

    def _run(self, tokens: Tensor, ancestors: Tensor, depth: Tensor, rows: Rows) -> Tensor:
        """Run all layers on nodes behind what was read; returns `[B, N, E]`."""
        now = self.cache.open(ancestors, depth, rows)
        # Padding, and rows at their end: past the limit they would change everyone's rotations.
        now.positions = now.positions.clamp(max=self.model.position_limit - 1)
        return self.model.run_layers(self.model.embed(self._known(tokens)), self.cache)

    def _known(self, tokens: Tensor) -> Tensor:
        """Replace ids that the model has no embedding for: such as only a target's padded head can write."""
        return tokens.clamp(max=self.model.config.vocab_size - 1)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.head(hidden).logits

    def _make_room(self, state: State, nodes: int) -> None:
        """Let the cache hold the whole text, as far as the model's positions go, and a pass behind it."""
        cache, limit, longest = self.cache, self.model.position_limit, max(state.text.ends)
        capacity = min(longest, limit)
        if cache.capacity and capacity > cache.capacity:
            capacity = max(capacity, min(2 * cache.capacity, limit))  # a text that goes on
        # A round adds at most so many tokens.
        margin = state.text.ids.shape[1] - longest
        if capacity > cache.capacity or max(nodes, margin) > cache.tree_capacity:
            cache.grow(capacity, max(nodes, margin))


def _shared(known: list[int], text: list[int], cached: int) -> int:
    """Count the cached tokens that a text begins with; its root, and one token at least before that, are read anew."""
    most = max(0, min(cached, len(known), len(text) - 2))  # one that waits has no root yet
    return next((i for i in range(most) if known[i] != text[i]), most)
