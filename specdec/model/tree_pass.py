"""One forward pass over trees behind cached prefixes: where its tokens lie, and what they see."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor

from specdec_kernels import tree_attention, tree_mask
from specdec_kernels.decoder_layer.cpu import attend_rows
from specdec_kernels.dispatch import Impl, chooses_kernel


class Shared(NamedTuple):
    """Prompts that several rows begin with, each in the cache once; as `tree_attention` takes them."""

    rows: Tensor | None
    """`[rows]` int64, the cache row that holds a row's prompt."""
    lens: Tensor | None
    """`[rows]` int64, cached tokens of it."""


class Pass(Protocol):
    """What the layers of one forward pass share: where its tokens are, and how they attend."""

    positions: Tensor
    """`[B, N]` int64."""
    windows: dict[int, int | None]
    """Per layer that has attended so far its sliding window; None is none."""
    angles: dict[Any, Any]
    """Rotations of the pass, in whatever form layers want them; made once."""
    cache: Any = None
    """The cache that layers write into, while they run."""

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
        """Attend over what is cached and the pass itself.

        Args:
            query: `[B, N, H, D]`.
            key: what the cache's `update` returned for the layer.
            value: likewise, perhaps of another size D.
            scale: of the scores.
            softcap: scores go through `softcap * tanh(score / softcap)`, or None.
            window: sliding window in positions, or None.

        Returns:
            `[B, N, H, D]`.
        """
        ...

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write `[B, N, G, D]` keys and values behind those of a layer, and return all that it has."""
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
        """Attend with `[B, G, N H / G, D]` queries, the heads of a group folded into rows; returns the same shape."""
        query = rearrange(rows, "b g (n h) d -> b n (g h) d", n=self.positions.shape[1])
        out = self.attend(query, keys, values, scale=scale, softcap=softcap, window=window)
        return rearrange(out, "b n (g h) d -> b g (n h) d", g=rows.shape[1])


class Attending(NamedTuple):
    """What a layer asks the attention interface for."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None
    window: int | None


class Observed:
    """A pass that notes what a layer asks of it."""

    def __init__(self, inner: Pass) -> None:
        """Watch a pass."""
        self._inner = inner
        self.asked: Attending | None = None

    def __getattr__(self, name: str) -> Any:
        """Be the pass in everything else."""
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
        """Note, and attend."""
        heads, size = query.shape[2:]
        self.asked = Attending(heads, key.shape[1], size, scale, softcap, window)
        return self._inner.attend(query, key, value, scale=scale, softcap=softcap, window=window)


class TreePass(Pass):
    """Where the tokens of one forward pass lie in the cache, and what they see.

    All layers of a pass share it, so a mask is written once per pass and kind of layer.
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
        """Describe a pass.

        Args:
            ancestors: `[B, N, ceil(N / 64)]` int64 bit sets.
            depth: `[B, N]` int64.
            prefix_lens: `[B]` int64, committed tokens per row.
            longest_prefix: the largest of them, known to the host.
            same_prefix: whether all rows have the longest prefix.
            cache_rows: `[B]` int64, None for all rows of the cache in order.
            shared: where the B rows' prefixes begin, if not in rows of their own.
            impl: what attends, as in `tree_attention`.
        """
        self.impl: Impl = impl
        # Written out once: a chain's are expanded views, which every layer's kernel would have to copy.
        self.ancestors, self.depth = ancestors.contiguous(), depth.contiguous()
        self.prefix_lens, self.cache_rows = prefix_lens, cache_rows
        self.shared = shared or Shared(None, None)
        self.positions = prefix_lens[:, None] + depth  # [B, N]
        self.columns = longest_prefix + depth.shape[1]
        # Rows in order with one prefix length are written as a slice, others slot by slot.
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
        """Return `tree_mask` of this pass as `[B, 1, N * group, columns]`, written at the first call for a window."""
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
        """Attend over `[rows, G, columns, D]` keys and values: the prefixes, and the trees behind them."""
        mask = None
        if chooses_kernel(self.impl, query):
            query = query.to(
                key.dtype
            )  # a rotation may have widened it; the reference widens keys instead
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
        """Tell whether each row has one node that sees all slots there are."""
        one = self.start is not None and self.positions.shape[1] == 1
        return one and (window is None or window >= self.columns)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write into slots; where rows are in order and alike, by views that are made once for all layers."""
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
        """Attend right away where each row's own slots are all that it sees, and no kernel does it."""
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
    """Per layer of the model views of its slots."""

    new_keys: tuple[Tensor, ...]
    """Each `[B, N, G, D]`."""
    new_values: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    """Each `[B, G, columns, D]`."""
    values: tuple[Tensor, ...]
