"""Forward passes over trees after cached prefixes: cache slots, positions and attention masks."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor

from specdec_kernels import tree_attention, tree_mask
from specdec_kernels.decoder_layer.cpu import attend_rows
from specdec_kernels.dispatch import Impl, chooses_kernel


class Shared(NamedTuple):
    """Prompts shared by several rows and cached once, in the form that `tree_attention` takes."""

    rows: Tensor | None
    """`[rows]` int64, the cache row that holds each row's prompt."""
    lens: Tensor | None
    """`[rows]` int64, cached tokens of that prompt."""


class Pass(Protocol):
    """One forward pass, as its layers see it: positions and attention."""

    positions: Tensor
    """`[B, N]` int64."""
    windows: dict[int, int | None]
    """Sliding window of each layer that has attended so far; None for full attention."""
    angles: dict[Any, Any]
    """Rotary embeddings of the pass, computed once per form that layers need."""
    cache: Any = None
    """The cache that layers write into; set while they run."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """Attend over the cached prefixes and the pass itself.

        Args:
            query: `[B, N, H, D]`.
            key: the layer's keys, as the cache's `update` returned them.
            value: the layer's values, perhaps with another D.
            scale: factor of the scores.
            softcap: scores become `softcap * tanh(score / softcap)`; None for no soft-cap.
            window: sliding window in positions; None for full attention.

        Returns:
            `[B, N, H, D]`.
        """
        ...

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values `[B, N, G, D]` of a layer after its cached ones, and return all of them."""
        both: tuple[Tensor, Tensor] = self.cache.update(k.transpose(1, 2), v.transpose(1, 2), layer)
        return both

    def attend_rows(
        self,
        rows: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """Attend with queries `[B, G, N H / G, D]`, in which a group's heads are folded into rows; returns that shape."""
        query = rearrange(rows, "b g (n h) d -> b n (g h) d", n=self.positions.shape[1])
        out = self.attend(query, keys, values, scale=scale, softcap=softcap, window=window)
        return rearrange(out, "b n (g h) d -> b g (n h) d", g=rows.shape[1])


class Attending(NamedTuple):
    """A layer's arguments at the attention interface."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None
    window: int | None


class Observed:
    """Wraps a pass and records a layer's attention arguments."""

    def __init__(self, inner: Pass) -> None:
        """Wrap a pass."""
        self._inner = inner
        self.asked: Attending | None = None

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the pass."""
        return getattr(self._inner, name)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """Record the arguments, and attend."""
        heads, size = query.shape[2:]
        self.asked = Attending(heads, key.shape[1], size, scale, softcap, window)
        return self._inner.attend(query, key, value, scale=scale, softcap=softcap, window=window)


class TreePass(Pass):
    """A pass over trees in a `TreeCache`.

    All layers of a pass share it, so each mask is computed once per pass and window.
    """

    def __init__(
        self,
        ancestors: Tensor,
        depth: Tensor,
        *,
        prefix_lens: Tensor,
        longest_prefix: int,
        same_prefix: bool,
        cache_rows: Tensor | None,
        shared: Shared | None,
        impl: Impl,
    ) -> None:
        """Create a pass.

        Args:
            ancestors: `[B, N, ceil(N / 64)]` int64 bit sets.
            depth: `[B, N]` int64.
            prefix_lens: `[B]` int64, committed tokens per row.
            longest_prefix: the largest of them, as a number on the host.
            same_prefix: whether all rows have that prefix length.
            cache_rows: `[B]` int64, None for all rows of the cache in order.
            shared: prompts that rows share, if their prefixes begin in other rows.
            impl: implementation of attention, as in `tree_attention`.
        """
        self.impl: Impl = impl
        # Made contiguous once: a chain's are expanded views, which every layer's kernel would copy.
        self.ancestors, self.depth = ancestors.contiguous(), depth.contiguous()
        self.prefix_lens, self.cache_rows = prefix_lens, cache_rows
        self.shared = shared or Shared(None, None)
        self.positions = prefix_lens[:, None] + depth  # [B, N]
        self.columns = longest_prefix + depth.shape[1]
        # Rows in order with equal prefix lengths are written as a slice, others slot by slot.
        self.start = longest_prefix if same_prefix and cache_rows is None else None
        if self.start is None:
            batch, nodes = depth.shape
            rows = torch.arange(batch, device=depth.device) if cache_rows is None else cache_rows
            slots = prefix_lens[:, None] + torch.arange(nodes, device=depth.device)
            self.write_index = rows[:, None], slots
        self.windows, self.angles = {}, {}
        self._masks: dict[tuple[int | None, int], Tensor] = {}
        self._slots: _Slots | None = None

    def mask(self, *, group: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return `tree_mask` of this pass as `[B, 1, N * group, columns]`, computed at the first call per window."""
        if (window, group) not in self._masks:
            self._masks[window, group] = tree_mask(
                self.prefix_lens,
                self.ancestors,
                self.depth,
                columns=self.columns,
                group=group,
                window=window,
                dtype=dtype,
            )[:, None]
        return self._masks[window, group]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """Attend over keys and values `[rows, G, columns, D]`: the prefixes, then the trees."""
        mask = None
        if chooses_kernel(self.impl, query):
            query = query.to(
                key.dtype
            )  # a rotation may have widened the query's dtype; the reference widens the keys instead
        else:
            group = query.shape[2] // key.shape[1]
            mask = self.mask(group=group, window=window, dtype=key.dtype)[:, 0]
        return tree_attention(
            query,
            key,
            value,
            prefix_lens=self.prefix_lens,
            ancestors=self.ancestors,
            depth=self.depth,
            cache_rows=self.cache_rows,
            shared_rows=self.shared.rows,
            shared_lens=self.shared.lens,
            scale=scale,
            softcap=softcap,
            window=window,
            mask=mask,
            impl=self.impl,
        )

    def _sees_all(self, window: int | None) -> bool:
        """Return whether each row has a single node that sees all of its slots."""
        one = self.start is not None and self.positions.shape[1] == 1
        return one and (window is None or window >= self.columns)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write into slots; if rows are in order with equal prefixes, through views made once for all layers."""
        if self.start is None:
            return super().append(layer, k, v)
        if self._slots is None:
            kv = self.cache.reserve(k.shape[2], k.shape[3])[:, :, : len(self.depth)]
            new = kv[..., self.start : self.columns, :].transpose(-2, -3)
            all_of = kv[..., : self.columns, :]
            self._slots = _Slots(*(x[:, at].unbind(0) for x in (new, all_of) for at in (0, 1)))
        new_keys, new_values, keys, values = self._slots
        new_keys[layer].copy_(k)
        new_values[layer].copy_(v)
        return keys[layer], values[layer]

    def attend_rows(
        self,
        rows: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """Attend without a mask if each row sees exactly its own slots and no kernel runs."""
        how: Any = {"scale": scale, "softcap": softcap}
        apart = self.cache_rows is not None or self.shared.rows is not None
        if apart or chooses_kernel(self.impl, rows):
            return super().attend_rows(rows, keys, values, window=window, **how)
        mask = None
        if not self._sees_all(window):
            group = rows.shape[2] // self.positions.shape[1]
            mask = self.mask(group=group, window=window, dtype=keys.dtype)
        if rows.dtype == keys.dtype:
            return attend_rows(rows, keys, values, mask, **how)
        return attend_rows(rows.to(keys.dtype), keys, values, mask, **how).to(rows.dtype)


class _Slots(NamedTuple):
    """Views of the slots of each layer."""

    new_keys: tuple[Tensor, ...]
    """Each `[B, N, G, D]`."""
    new_values: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    """Each `[B, G, columns, D]`."""
    values: tuple[Tensor, ...]
