"""One forward pass over trees behind cached prefixes: where its tokens lie, and what they see."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from specdec_kernels import tree_attention, tree_mask
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
        self.windows = {}
        self._masks: dict[tuple[int | None, int], Tensor] = {}

    def mask(self, *, group: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return `tree_mask` of this pass, written at the first call for a window."""
        if (window, group) not in self._masks:
            self._masks[window, group] = tree_mask(
                self.prefix_lens,
                self.ancestors,
                self.depth,
                columns=self.columns,
                group=group,
                window=window,
                dtype=dtype,
            )
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
            mask = self.mask(group=group, window=window, dtype=key.dtype)
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
