"""The public function: checks its arguments, then runs the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import commit_kv_reference


def commit_kv(
    kv: Tensor,
    path: Tensor,
    lengths: Tensor,
    *,
    prefix_lens: Tensor,
    cache_rows: Tensor | None = None,
) -> None:
    """Move the accepted nodes' keys and values behind the prefix, in place, for all layers.

    Afterwards the first `prefix_lens[b] + lengths[b] + 1` slots of row `b` are its prefix; the rest is stale.

    Args:
        kv: `[layers, 2, rows, G, S, D]`, keys and values; node `j` lies in slot `prefix_lens[b] + j`.
        path: `[B, N]` int64 from `accept_tree`.
        lengths: `[B]` int64 from `accept_tree`.
        prefix_lens: `[B]` int64, with `prefix_lens + N <= S`.
        cache_rows: `[B]` int64, distinct; None for the first B in order.

    Raises:
        ValueError: if `kv` is not six-dimensional or the batch sizes differ.
    """
    if kv.ndim != 6 or kv.shape[1] != 2:
        raise ValueError(f"kv: expected shape [layers, 2, rows, G, S, D], got {list(kv.shape)}")
    if not path.shape[0] == lengths.shape[0] == prefix_lens.shape[0]:
        raise ValueError(
            "path, lengths, prefix_lens: expected one batch size, got "
            f"{path.shape[0]}, {lengths.shape[0]}, {prefix_lens.shape[0]}"
        )
    if path.shape[1] == 1:
        return  # a root alone is in place
    if cache_rows is None:
        cache_rows = torch.arange(path.shape[0], device=kv.device)
    commit_kv_reference(kv, path, lengths, prefix_lens, cache_rows)
