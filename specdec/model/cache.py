"""Keys and values of all layers in one preallocated tensor that a tree can be written behind."""

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

# The library's names for a cache; releases before 5.24 have the second alone.
CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = next(
    name for name in CACHE_NAMES if name in {field.name for field in fields(CausalLMOutputWithPast)}
)
"""The one of the installed release; the other warns, if it is known at all."""


class Rows(NamedTuple):
    """Some texts of a cache, known to the device and to the host."""

    ids: Tensor
    """`[B]` int64, in the order of their cache rows."""
    host: list[int]
    """The same."""

    @classmethod
    def first(cls, count: int, device: torch.device) -> Rows:
        """Take the first `count` rows."""
        return cls(torch.arange(count, device=device), list(range(count)))

    @classmethod
    def of(cls, host: list[int], device: torch.device) -> Rows:
        """Take these rows."""
        return cls(torch.tensor(host, dtype=torch.int64, device=device), host)

    def select(self, stay: list[int]) -> Rows:
        """Keep the rows at these places."""
        places = torch.tensor(stay, dtype=torch.int64, device=self.ids.device)
        return Rows(self.ids[places], [self.host[at] for at in stay])


class Places:
    """Which row of a cache each text has, where more texts than rows take turns."""

    def __init__(self, texts: int, device: torch.device) -> None:
        """Begin with no text in a row."""
        self.host = [0] * texts
        """Per text its cache row, once it has one."""
        self.ids = torch.tensor(self.host, device=device)
        """`[texts]` int64, the same."""

    def give(self, texts: list[int], cache_rows: list[int]) -> None:
        """Let texts have these rows from now on."""
        for text, row in zip(texts, cache_rows, strict=True):
            self.host[text] = row
        self.ids = torch.tensor(self.host, device=self.ids.device)


class AttendingCache(Cache):
    """A cache for models whose layers all attend, with as many heads of one size."""

    def __init__(self) -> None:
        """Leave the library's own layers out."""
        super().__init__(layers=[])
        self.current: Any = None
        """The pass whose keys and values come next, a `Pass`."""

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
    """A cache of `capacity + tree_capacity` slots per row, handed to the model's layers as theirs.

    The prefix of text `r` is the first `lengths[r]` slots of its row, the tree of a pass lies behind it. Rolling back is
    lowering a length. Slots start as zeros because NaN in a masked slot would still poison attention.

    Text r has row r, unless there are more texts than rows: then `places` says which row each one has, if any.
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
        """Reserve slots; memory is taken at the first pass, which shows the shape of a head.

        Args:
            layers: number of attention layers.
            rows: sequences held at a time.
            capacity: most committed tokens per row.
            tree_capacity: most nodes per tree.
            dtype: dtype of keys and values; float64 for exact attention.
            device: where they live.
            texts: how many take turns in the rows; None for one per row.
        """
        super().__init__()
        self.shape = (layers, 2, rows)
        self.places = None if texts is None else Places(texts, device)
        """Where texts take turns in the rows; None where each has its own."""
        texts = rows if texts is None else texts
        self.capacity, self.tree_capacity = capacity, tree_capacity
        self.slots = capacity + tree_capacity
        self.dtype, self.device = dtype, device
        self.impl: Impl = "reference" if dtype == torch.float64 else "auto"
        """What attends to this cache: float64 has no kernel."""
        self.lengths = torch.zeros(texts, dtype=torch.int64, device=device)
        """`[texts]` int64, committed tokens of each one."""
        self.host_lengths = [0] * texts
        """The same, for the host; `State.advance` brings it up to date once a round."""
        self.kv: Tensor | None = None
        """`[layers, 2, rows, G, slots, D]`."""
        self.drafter_kv: Tensor | None = None
        """`[1, 2, rows, G', slots, D']`, of a drafter that attends too: one more layer, with heads of its own."""
        self.drafter_kv_moves = True
        """Whether accepted nodes of `drafter_kv` move with the target's; False for a drafter that writes them anew."""
        self.current: TreePass | None = None
        self.shared: Shared | None = None
        self.texts: list[list[int]] = []
        """What the rows hold, from the first token on, and perhaps tokens that are not cached yet; none where texts take turns."""
        self.made_for: tuple[object, object, int] = (None, None, 0)
        """The target and the drafter that have read the texts, and the target's `changes` then."""
        self.stream: object = None
        """The latest that writes into it."""
        self.memory: dict[object, Any] = {}
        """What drafters keep about these and earlier texts, by the drafter; sessions that go on with the cache share it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> TreeCache:
        """Copy keys, values and texts, between passes; the target and the drafter are the same, its memory begins anew."""
        copied = copy.copy(self)
        copied.current, copied.memory = None, {}
        memo[id(self)] = copied
        shared = {id(x): x for x in (*self.made_for[:2], self.stream)}
        for name, value in vars(copied).items():
            setattr(copied, name, copy.deepcopy(value, shared))
        return copied

    def share_prompts(self, rows: Rows, readers: list[int]) -> None:
        """Let rows begin with prompts that were read into some of them.

        Where a kernel attends, it reads a prompt where it is, once for all of its rows. Elsewhere reading it there would
        take a copy per layer and pass, so it is copied once; and where texts take turns, a reader's row may be the next
        text's while the others go on.

        Args:
            rows: all that begin.
            readers: per row the one that has read its prompt.
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
        """Make room for at least `capacity` committed tokens per row and `tree_capacity` nodes; keeps what is there."""
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
        """Declare how much of each row is its prefix, after prefill or to roll back; `rows` alone, or all."""
        known = list(lengths)
        if rows is not None:
            known = list(self.host_lengths)
            for row, length in zip(rows.host, lengths, strict=True):
                known[row] = length
        self.host_lengths = known
        self.lengths = torch.tensor(known, device=self.device)

    def row_of(self, text: int) -> int:
        """Say which row of the cache is a text's."""
        return text if self.places is None else self.places.host[text]

    def cache_rows(self, rows: Rows) -> Tensor:
        """`[B]` int64, the rows of the cache that are these texts'."""
        return rows.ids if self.places is None else self.places.ids[rows.ids]

    def clear(self, rows: Rows) -> None:
        """Empty rows that others had before; not even what hides behind a mask stays."""
        self.set_lengths([0] * len(rows.host), rows)
        for kv in (self.kv, self.drafter_kv):
            if kv is not None:
                kv[:, :, self.cache_rows(rows)] = 0

    def open(self, ancestors: Tensor, depth: Tensor, rows: Rows, *, behind: int = 0) -> TreePass:
        """Begin a pass: what the layers write next are the nodes of this tree.

        Args:
            ancestors: `[B, N, ceil(N / 64)]` int64 bit sets.
            depth: `[B, N]` int64.
            rows: the B texts that take part, whose cache rows ascend.
            behind: how many nodes of a chain were written before this pass; it sees them as prefix.
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
            # Ascending: as many as there are, they are all rows in order.
            cache_rows=self.cache_rows(rows) if len(rows.host) < self.shape[2] else None,
            shared=self.shared and Shared(*(x[rows.ids] for x in self.shared if x is not None)),
            impl=self.impl,
        )
        return self.current

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write `[B, G, N, D]` keys and values of the current pass; called by the model's layers.

        The index after the last layer of the model is the drafter's.

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
        """Return the keys and values of all layers, `[layers, 2, rows, G, slots, D]`, zeros at first."""
        if self.kv is None:
            self.kv = self._zeros(self.shape[0], heads, size)
        return self.kv

    def _zeros(self, layers: int, heads: int, size: int) -> Tensor:
        shape = [layers, *self.shape[1:], heads, self.slots, size]
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def drafter_layer(self) -> tuple[Tensor, Tensor]:
        """Return the drafter's keys and values `[rows, G', columns, D']` as far as the current pass reaches."""
        assert self.drafter_kv is not None, "prompts are read before anything is drafted"
        assert self.current is not None
        keys, values = self.drafter_kv[0]
        return keys[:, :, : self.current.columns], values[:, :, : self.current.columns]

    def commit(self, accepted: Accepted, rows: Rows) -> None:
        """Make the root and the accepted nodes of the current pass part of the prefix of `rows`."""
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
