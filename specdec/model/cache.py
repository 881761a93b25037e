"""The KV cache: keys and values of all layers in one preallocated tensor, with room for a tree after each prefix."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from specdec_kernels import commit_kv
from specdec_kernels.dispatch import Impl, chooses_kernel

from ..tree import Accepted
from .tree_pass import Shared, TreePass

# Transformers' names for a cache; releases before 5.24 have only the second.
CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = next(
    name for name in CACHE_NAMES if name in {field.name for field in fields(CausalLMOutputWithPast)}
)
"""The installed release's name; the other one warns, or is unknown."""


class Rows(NamedTuple):
    """Indices of texts in a cache, on the device and on the host."""

    ids: Tensor
    """`[B]` int64, in the order of their cache rows."""
    host: list[int]
    """The same indices on the host."""

    @classmethod
    def first(cls, count: int, device: torch.device) -> Rows:
        """Return the first `count` rows."""
        return cls(torch.arange(count, device=device), list(range(count)))

    @classmethod
    def of(cls, host: list[int], device: torch.device) -> Rows:
        """Create rows from indices."""
        return cls(torch.tensor(host, dtype=torch.int64, device=device), host)

    def select(self, stay: list[int]) -> Rows:
        """Return the rows at these positions."""
        places = torch.tensor(stay, dtype=torch.int64, device=self.ids.device)
        return Rows(self.ids[places], [self.host[at] for at in stay])


class Places:
    """The cache row of each text, if there are more texts than rows."""

    def __init__(self, texts: int, device: torch.device) -> None:
        """Create the map with no text assigned."""
        self.host = [0] * texts
        """Per text its cache row, once assigned."""
        self.ids = torch.tensor(self.host, device=device)
        """`[texts]` int64, the same on the device."""

    def give(self, texts: list[int], cache_rows: list[int]) -> None:
        """Assign cache rows to texts."""
        for text, row in zip(texts, cache_rows, strict=True):
            self.host[text] = row
        self.ids = torch.tensor(self.host, device=self.ids.device)


class AttendingCache(Cache):
    """A cache for models whose layers all attend, with equal numbers and sizes of heads."""

    def __init__(self) -> None:
        """Create a cache without transformers' own cache layers."""
        super().__init__(layers=[])
        self.current: Any = None
        """The open pass, a `Pass`."""

    @staticmethod
    def check_heads(key_states: Tensor, value_states: Tensor, *, heads: int, size: int) -> None:
        """Raise NotImplementedError unless `[B, G, N, D]` keys and values have this many heads of this size."""
        found, of_size = key_states.shape[1], key_states.shape[3]
        if value_states.shape != key_states.shape:
            raise NotImplementedError(
                f"cache: expected values of the size of keys, {of_size}, got {value_states.shape[-1]}, "
                "as latent attention has them"
            )
        if (found, of_size) != (heads, size):
            raise NotImplementedError(
                f"cache: expected {heads} heads of size {size} in every layer, got {found} of {of_size}"
            )

    def _refuse_state(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            "cache: expected layers that attend, got one with a state of its own, which a tree cannot branch"
        )

    get_conv_state = update_conv_state = _refuse_state
    get_recurrent_state = update_recurrent_state = _refuse_state


class TreeCache(AttendingCache):
    """A KV cache of `capacity + tree_capacity` slots per row, passed to the model's layers.

    The prefix of text `r` is the first `lengths[r]` slots of its row; the tree of a pass lies after it. Lowering a length
    rolls back. Slots start as zeros because NaN in a masked slot would still change the attention's result.

    Text r has row r, unless there are more texts than rows: then `places` maps texts to rows.
    """

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        capacity: int,
        tree_capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        texts: int | None = None,
    ) -> None:
        """Create a cache; memory is allocated at the first pass, which shows the heads' shape.

        Args:
            layers: number of attention layers.
            rows: sequences held at the same time.
            capacity: most committed tokens per row.
            tree_capacity: most nodes per tree.
            dtype: dtype of keys and values; float64 for exact attention.
            device: device of keys and values.
            texts: number of texts that share the rows in turn; None for one per row.
        """
        super().__init__()
        self.shape = (layers, 2, rows)
        self.places = None if texts is None else Places(texts, device)
        """The row of each text; None if each text has its own row."""
        texts = rows if texts is None else texts
        self.capacity, self.tree_capacity = capacity, tree_capacity
        self.slots = capacity + tree_capacity
        self.dtype, self.device = dtype, device
        self.impl: Impl = "reference" if dtype == torch.float64 else "auto"
        """Implementation of attention; float64 has no kernel."""
        self.lengths = torch.zeros(texts, dtype=torch.int64, device=device)
        """`[texts]` int64, committed tokens of each text."""
        self.host_lengths = [0] * texts
        """The same on the host; `State.advance` updates it once per round."""
        self.kv: Tensor | None = None
        """`[layers, 2, rows, G, slots, D]`."""
        self.drafter_kv: Tensor | None = None
        """`[1, 2, rows, G', slots, D']`, keys and values of a drafter's own attention layer."""
        self.drafter_kv_moves = True
        """Whether `commit` moves accepted nodes of `drafter_kv` too; False for a drafter that writes them again."""
        self.current: TreePass | None = None
        self.shared: Shared | None = None
        self.texts: list[list[int]] = []
        """The rows' tokens, perhaps followed by uncached ones; empty if texts share rows in turn."""
        self.made_for: tuple[object, object, int] = (None, None, 0)
        """The target and the drafter that filled the cache, and the target's `changes` at that time."""
        self.stream: object = None
        """The newest stream that writes into the cache."""
        self.memory: dict[object, Any] = {}
        """State that drafters keep between texts; the key is the drafter. Sessions that take over the cache share it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> TreeCache:
        """Copy keys, values and texts (between passes); target and drafter are shared, the drafters' memory starts empty."""
        copied = copy.copy(self)
        copied.current, copied.memory = None, {}
        memo[id(self)] = copied
        shared = {id(x): x for x in (*self.made_for[:2], self.stream)}
        for name, value in vars(copied).items():
            setattr(copied, name, copy.deepcopy(value, shared))
        return copied

    def share_prompts(self, rows: Rows, readers: list[int]) -> None:
        """Give rows the prompts that were read into some of them.

        A kernel reads a shared prompt in its reader's row, once for all rows. Without a kernel that would take a copy per
        layer and pass, so the prompt is copied once. It is also copied if texts share rows in turn, as a reader's row may
        be given to the next text while the others continue.

        Args:
            rows: all rows that start.
            readers: per row, the row that has read its prompt.
        """
        assert self.kv is not None
        lengths = [self.host_lengths[reader] for reader in readers]
        self.set_lengths(lengths, rows)
        read = Rows.of(readers, self.device)
        if self.places is None and chooses_kernel(self.impl, self.kv):
            self.shared = Shared(read.ids, self.lengths.clone())
        to, of = self.cache_rows(rows), self.cache_rows(read)
        for kv in (self.kv, self.drafter_kv):
            if kv is not None and (kv is self.drafter_kv or self.shared is None):
                kv[:, :, to, :, : max(lengths)] = kv[:, :, of, :, : max(lengths)]

    def grow(self, capacity: int, tree_capacity: int) -> None:
        """Enlarge the cache to at least `capacity` committed tokens per row and `tree_capacity` nodes; keeps its contents."""
        self.capacity = max(capacity, self.capacity)
        more = self.capacity + max(tree_capacity, self.tree_capacity) - self.slots
        if more > 0:
            self.slots += more
            self.kv, self.drafter_kv = (
                None if kv is None else F.pad(kv, (0, 0, 0, more))
                for kv in (self.kv, self.drafter_kv)
            )
        self.tree_capacity = self.slots - self.capacity

    def set_lengths(self, lengths: list[int], rows: Rows | None = None) -> None:
        """Set the prefix lengths of `rows`, or of all, after prefill or to roll back."""
        known = list(lengths)
        if rows is not None:
            known = list(self.host_lengths)
            for row, length in zip(rows.host, lengths, strict=True):
                known[row] = length
        self.host_lengths = known
        self.lengths = torch.tensor(known, device=self.device)

    def row_of(self, text: int) -> int:
        """Return the cache row of a text."""
        return text if self.places is None else self.places.host[text]

    def cache_rows(self, rows: Rows) -> Tensor:
        """Return the cache rows of texts, `[B]` int64."""
        return rows.ids if self.places is None else self.places.ids[rows.ids]

    def clear(self, rows: Rows) -> None:
        """Zero the rows, masked slots included, before other texts use them."""
        self.set_lengths([0] * len(rows.host), rows)
        for kv in (self.kv, self.drafter_kv):
            if kv is not None:
                kv[:, :, self.cache_rows(rows)] = 0

    def open(self, ancestors: Tensor, depth: Tensor, rows: Rows, *, behind: int = 0) -> TreePass:
        """Open a pass over the nodes of a tree, whose keys and values the layers write next.

        Args:
            ancestors: `[B, N, ceil(N / 64)]` int64 bit sets.
            depth: `[B, N]` int64.
            rows: the B texts of the pass, in ascending order of cache rows.
            behind: number of chain nodes written before this pass, which sees them as part of the prefix.
        """
        lengths = [self.host_lengths[row] + behind for row in rows.host]
        longest = max(lengths)
        assert longest + depth.shape[1] <= self.slots, "a pass runs over the end of the cache"
        self.current = TreePass(
            ancestors,
            depth,
            prefix_lens=self.lengths[rows.ids] + behind if behind else self.lengths[rows.ids],
            longest_prefix=longest,
            same_prefix=min(lengths) == longest,
            # Rows ascend, so if all take part they are in order.
            cache_rows=self.cache_rows(rows) if len(rows.host) < self.shape[2] else None,
            shared=self.shared and Shared(*(x[rows.ids] for x in self.shared if x is not None)),
            impl=self.impl,
        )
        return self.current

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values `[B, G, N, D]` of the current pass; called by the model's layers.

        The layer index after the model's last layer is the drafter's.

        Returns:
            The layer's keys and values `[rows, G, columns, D]`, views of the cache.
        """
        now = self.current
        assert now is not None, "a pass must be opened before the layers run"
        batch, heads, _, size = key_states.shape
        own = layer_idx < self.shape[0]
        kv = self.reserve(heads, size) if own else self.drafter_kv
        if kv is None:
            kv = self.drafter_kv = self._zeros(1, heads, size)
        self.check_heads(key_states, value_states, heads=kv.shape[3], size=kv.shape[5])
        keys, values = kv[layer_idx if own else 0]  # [rows, G, slots, D]
        if now.start is not None:
            keys[:batch, :, now.start : now.columns] = key_states
            values[:batch, :, now.start : now.columns] = value_states
        else:
            rows, slots = now.write_index
            keys[rows, :, slots] = key_states.transpose(1, 2).to(self.dtype)
            values[rows, :, slots] = value_states.transpose(1, 2).to(self.dtype)
        return keys[:, :, : now.columns], values[:, :, : now.columns]

    def reserve(self, heads: int, size: int) -> Tensor:
        """Return keys and values of all layers, `[layers, 2, rows, G, slots, D]`; allocates zeros at the first call."""
        if self.kv is None:
            self.kv = self._zeros(self.shape[0], heads, size)
        return self.kv

    def _zeros(self, layers: int, heads: int, size: int) -> Tensor:
        shape = [layers, *self.shape[1:], heads, self.slots, size]
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def drafter_layer(self) -> tuple[Tensor, Tensor]:
        """Return the drafter's keys and values `[rows, G', columns, D']`, up to the end of the current pass."""
        assert self.drafter_kv is not None, "prompts are read before anything is drafted"
        assert self.current is not None
        keys, values = self.drafter_kv[0]
        return keys[:, :, : self.current.columns], values[:, :, : self.current.columns]

    def commit(self, accepted: Accepted, rows: Rows) -> None:
        """Add the root and the accepted nodes of the current pass to the prefixes of `rows`."""
        assert self.kv is not None
        assert self.current is not None
        prefix_lens = self.current.prefix_lens
        for kv in (self.kv, self.drafter_kv if self.drafter_kv_moves else None):
            if kv is not None:
                commit_kv(
                    kv,
                    accepted.path,
                    accepted.lengths,
                    prefix_lens=prefix_lens,
                    cache_rows=self.current.cache_rows,
                )
        self.lengths[rows.ids] = prefix_lens + accepted.lengths + 1
