"""`Reader`: a draft model that follows the target's text in a KV cache of its own.

The cache's prefix holds certain text only. Keys and values of a draft lie behind the prefix and are overwritten by the
next pass, so no roll-back is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec_kernels import ancestor_matrix, pack_bits

from ...model.cache import Rows, TreeCache
from ...model.target import Target
from ...state import State


class Reader:
    """A draft model and its cache, whose rows are those of the target's cache."""

    def __init__(self, model: Target, beside: TreeCache, texts: int) -> None:
        """Create a reader with an empty cache.

        Args:
            model: the draft model; it has the target's vocabulary.
            beside: the target's cache.
            texts: number of texts.
        """
        self.model, self.changes = model, model.changes
        self.cache = model.new_cache(rows=beside.shape[2], capacity=0, tree_capacity=0, texts=texts)
        self.cache.places = beside.places
        self.texts: list[list[int]] = [[] for _ in range(texts)]
        """The tokens of each cache row, perhaps followed by uncached ones."""

    def reads_on(self, state: State) -> bool:
        """Return whether the cache can be reused: same number of rows, one text per row, and an unchanged model."""
        apart = self.cache.places is None and state.cache.places is None
        alike = len(self.texts) == len(state.text.host)
        return apart and alike and self.changes == self.model.changes

    def start(self, state: State, nodes: int) -> None:
        """Read prompts, from the first position at which one differs from its row; roots are read with the first draft.

        Args:
            state: after prefill.
            nodes: most nodes of a draft.
        """
        texts, cache = state.text.host, self.cache
        known = zip(self.texts, texts, cache.host_lengths, strict=True)
        shared = min(_shared(old, new, cached) for old, new, cached in known)
        self.texts = [old[:shared] for old in self.texts]  # still correct if reading is interrupted
        self._make_room(state, nodes)
        cache.set_lengths([shared] * len(texts))
        self._read_prompts(state, state.rows, shared)

    def join(self, state: State, rows: Rows) -> None:
        """Read the prompts of rows that start in cache rows of finished ones."""
        self.cache.clear(rows)
        self._read_prompts(state, rows, 0)

    def _read_prompts(self, state: State, rows: Rows, known: int) -> None:
        """Read prompts without their roots; `known` tokens are cached already."""
        texts, limit = state.text.host, self.model.position_limit
        fits = [len(texts[row]) <= limit for row in rows.host]
        reading = rows.select([at for at, fit in enumerate(fits) if fit])
        beyond = rows.select([at for at, fit in enumerate(fits) if not fit])
        # Beyond the model's positions, nothing is read or drafted.
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
            self.texts[row] = texts[row]  # the same list, which grows

    def room(self, state: State) -> int:
        """Return the largest draft depth of any row within the draft model's positions."""
        return self.model.position_limit - min(state.cache.host_lengths[r] for r in state.rows.host)

    def row_room(self, state: State) -> Tensor:
        """Return the same for each row, `[B]` int64."""
        return self.model.position_limit - state.lengths

    def read(self, state: State) -> Tensor:
        """Read the rows' new tokens, roots included; returns logits `[B, 1, V]` after the roots."""
        cache, rows, last = self.cache, state.rows, self.model.position_limit - 1
        ends = [min(state.cache.host_lengths[row], last) + 1 for row in rows.host]
        # Rows with fewer new tokens also read stale ones after their roots, which later passes overwrite.
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
        """Read the next token `[B]` of a chain, after `behind` earlier ones; returns logits `[B, 1, V]`."""
        layers = len(self.model.parts.layers)
        hidden = self.model.extend(
            self._known(tokens), self.cache, rows, layers=layers, behind=behind
        )
        return self._logits(hidden[:, :1])

    def after_tree(
        self, tokens: Tensor, parents: Tensor, depth: Tensor, rows: Rows, wanted: int
    ) -> Tensor:
        """Read a whole draft after the text.

        Args:
            tokens: `[B, K]` int64.
            parents: `[B, K]` int64, index of each node's parent; -1 for the root.
            depth: `[K]` int64, 0 for nodes that follow the root.
            rows: the B rows.
            wanted: number of last nodes that get logits.

        Returns:
            Logits `[B, wanted, V]`.
        """
        ancestors = pack_bits(ancestor_matrix(parents))
        hidden = self._run(tokens, ancestors, depth.expand_as(tokens), rows)
        return self._logits(hidden[:, -wanted:])

    def _run(self, tokens: Tensor, ancestors: Tensor, depth: Tensor, rows: Rows) -> Tensor:
        """Run all layers on nodes after the cached text; returns `[B, N, E]`."""
        now = self.cache.open(ancestors, depth, rows)
        # Padding and finished rows are clamped: positions past the limit would change all rows' rotations.
        now.positions = now.positions.clamp(max=self.model.position_limit - 1)
        return self.model.run_layers(self.model.embed(self._known(tokens)), self.cache)

    def _known(self, tokens: Tensor) -> Tensor:
        """Replace ids without an embedding in the draft model; only a target's padded head can generate them."""
        return tokens.clamp(max=self.model.config.vocab_size - 1)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.head(hidden).logits

    def _make_room(self, state: State, nodes: int) -> None:
        """Enlarge the cache to hold the whole text, within the model's positions, and one pass after it."""
        cache, limit, longest = self.cache, self.model.position_limit, max(state.text.ends)
        capacity = min(longest, limit)
        if cache.capacity and capacity > cache.capacity:
            capacity = max(capacity, min(2 * cache.capacity, limit))  # for a text that continues
        # The most tokens that a round adds.
        margin = state.text.ids.shape[1] - longest
        if capacity > cache.capacity or max(nodes, margin) > cache.tree_capacity:
            cache.grow(capacity, max(nodes, margin))


def _shared(known: list[int], text: list[int], cached: int) -> int:
    """Count the cached tokens that a text begins with; its root and at least one token before it are read again."""
    most = max(0, min(cached, len(known), len(text) - 2))  # a waiting text has no root yet
    return next((i for i in range(most) if known[i] != text[i]), most)
