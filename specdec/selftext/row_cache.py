"""`RowCache`: keys and values of many rows of different lengths, in a blocked layout.

    [layer, key or value, block of 128 columns, row, head, column, D]

A block of neighbouring rows is contiguous, so one batched product reads it at memory speed, on a CPU several times faster
than attention over a strided slice. Rows sorted by length form zones of similar length; each zone attends over the blocks
that its longest row needs. Scores are rounded to the cache's dtype, as in transformers' eager attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ..model.cache import AttendingCache
from ..model.tree_pass import Pass

# Columns of a block: blocks of 64 take longer per column, blocks of 256 read more unused columns.
BLOCK = 128
# Rows of a zone.
ZONE = 32


class Zone(NamedTuple):
    """Neighbouring rows that attend together, with equal numbers of new tokens."""

    rows: slice
    tokens: Tensor
    """`[rows * n]` int64, indices of their tokens in the pass."""
    blocks: int
    """Most blocks of any row."""


class RowsPass(Pass):
    """One pass over T new tokens, any number per row, after the rows' cached tokens."""

    def __init__(self, cache: RowCache, lengths: Sequence[int], counts: Sequence[int]) -> None:
        """Create a pass.

        Args:
            cache: the rows' cache; its first rows take part.
            lengths: number of cached tokens per row.
            counts: number of new tokens per row, at least 1; tokens are ordered by row.
        """
        device, self.cached_rows = cache.device, cache.rows
        places = [(row, held + at) for row, held in enumerate(lengths) for at in range(counts[row])]
        rows, columns = torch.tensor(places, device=device).T  # [T]
        self.positions = columns[:, None]
        self.write_index = columns // BLOCK, rows, columns % BLOCK
        # First the last token of each row, often its only one; then the other tokens of some rows, row by row, so that
        # rows with one token are not padded.
        ends = list(accumulate(counts))
        blocks = [-(-(held + new) // BLOCK) for held, new in zip(lengths, counts, strict=True)]
        last = torch.tensor(ends, device=device) - 1
        self.zones = [
            Zone(rows, last[rows], max(blocks[rows]))
            for begin in range(0, len(lengths), ZONE)
            for rows in [slice(begin, min(begin + ZONE, len(lengths)))]
        ] + [
            Zone(slice(row, row + 1), torch.arange(end - new, end - 1, device=device), blocks[row])
            for row, (new, end) in enumerate(zip(counts, ends, strict=True))
            if new > 1
        ]
        self.windows, self.angles = {}, {}
        self._masks: dict[tuple[int, int | None], Tensor] = {}

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
        """Attend zone by zone: queries `[T, 1, H, D]` over keys and values `[blocks * rows, G, 128, D]`."""
        key, value = (x.unflatten(0, (-1, self.cached_rows)) for x in (key, value))
        q = query[:, 0].to(key.dtype) * scale  # [T, H, D]
        out = q.new_empty(*q.shape[:-1], value.shape[-1])
        fold, unfold = "(r n) (g h) d -> (r g) (n h) d", "(r g) (n h) d -> (r n) (g h) d"
        for number, zone in enumerate(self.zones):
            keys, values = (
                [x[block, zone.rows].flatten(0, 1) for block in range(zone.blocks)]
                for x in (key, value)
            )
            sizes = {"g": key.shape[2], "r": len(keys[0]) // key.shape[2]}
            folded = rearrange(q[zone.tokens], fold, **sizes)
            scores = torch.cat([torch.bmm(folded, block.mT) for block in keys], -1)
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            mask = self._mask(number, window, scores, sizes["r"])
            shares = (scores.unflatten(0, (sizes["r"], -1)) + mask).softmax(-1)
            split = shares.flatten(0, 1).split(BLOCK, -1)
            sums = torch.bmm(split[0], values[0])
            for share, block in zip(split[1:], values[1:], strict=True):
                sums = torch.baddbmm(sums, share, block)
            out[zone.tokens] = rearrange(sums, unfold, **sizes, n=len(zone.tokens) // sizes["r"])
        return out[:, None]

    def _mask(self, number: int, window: int | None, scores: Tensor, rows: int) -> Tensor:
        """Return a bias `[rows, 1, n h or 1, columns]`: 0 where a token sees a column, -inf elsewhere."""
        if (number, window) not in self._masks:
            last = self.positions[self.zones[number].tokens].view(rows, -1, 1)  # [rows, n, 1]
            columns = torch.arange(scores.shape[-1], device=last.device)
            seen = columns <= last
            if window is not None:
                seen &= columns > last - window
            bias = torch.zeros(seen.shape, dtype=scores.dtype, device=last.device)
            bias.masked_fill_(~seen, -torch.inf)
            if bias.shape[1] > 1:
                bias = bias.repeat_interleave(scores.shape[1] // bias.shape[1], 1)
            self._masks[number, window] = bias[:, None]
        return self._masks[number, window]


class RowCache(AttendingCache):
    """The KV cache of continuous batching, passed to the model's layers."""

    def __init__(
        self, *, layers: int, rows: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Create a cache; memory is allocated at the first pass, which shows the heads' shape.

        Args:
            layers: number of attention layers.
            rows: texts held at the same time.
            capacity: most tokens per text.
            dtype: dtype of keys and values.
            device: device of keys and values.
        """
        super().__init__()
        self.layers_of_model, self.rows, self.blocks = layers, rows, -(-capacity // BLOCK)
        self.dtype, self.device = dtype, device
        self.kv: Tensor | None = None
        """`[layers, 2, blocks, rows, G, 128, D]`."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values `[T, G, 1, D]` of the current pass; called by the model's layers.

        Returns:
            The layer's keys and values `[blocks * rows, G, 128, D]`, with the head axis that layers may use.
        """
        _, heads, _, size = key_states.shape
        if self.kv is None:
            shape = [self.layers_of_model, 2, self.blocks, self.rows, heads, BLOCK, size]
            # Zeros, as unwritten slots are multiplied with probabilities of zero.
            self.kv = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.check_heads(key_states, value_states, heads=self.kv.shape[4], size=self.kv.shape[6])
        blocks, rows, columns = self.current.write_index
        keys, values = self.kv[layer_idx]
        keys[blocks, rows, :, columns] = key_states[:, :, 0].to(self.dtype)
        values[blocks, rows, :, columns] = value_states[:, :, 0].to(self.dtype)
        return keys.flatten(0, 1), values.flatten(0, 1)

    def move(self, source: int, to: int, length: int) -> None:
        """Copy the first tokens of a row into another."""
        assert self.kv is not None
        blocks = -(-length // BLOCK)
        self.kv[:, :, :blocks, to] = self.kv[:, :, :blocks, source]
