"""Commit: the accepted nodes' keys and values move to the end of the prefix, in place, for all layers at once.

before   prefix | 0 1 2 3 4 |        path 0, 2, 3
after    prefix | 0 2 3 . . |        slot 2 is both read and written: sources are read before any write
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import host_may_look


def commit_kv_reference(
    kv: Tensor, path: Tensor, lengths: Tensor, prefix_lens: Tensor, cache_rows: Tensor | None
) -> None:
    """Reference implementation; arguments as in `commit_kv`."""
    rows = torch.arange(len(path), device=path.device)
    if cache_rows is not None:
        there = cache_rows >= 0
        lengths, prefix_lens = lengths.where(there, 0), prefix_lens.where(there, 0)
    longest = int(lengths.max()) if host_may_look(path) else path.shape[1] - 1
    if longest <= 0:
        return
    if cache_rows is not None:
        # Rows of padding repeat the first other row: the same numbers are written to the same slots twice.
        like = torch.where(there, rows, there.long().argmax())
        path, lengths, prefix_lens, rows = (
            x[like] for x in (path, lengths, prefix_lens, cache_rows)
        )
    step = torch.arange(1, longest + 1, device=path.device)  # the root, step 0, is in place
    node = torch.where(step <= lengths[:, None], path[:, 1 : longest + 1], step)
    source, target = prefix_lens[:, None] + node, prefix_lens[:, None] + step  # [B, longest]
    rows = rows[:, None]
    kv[:, :, rows, :, target] = kv[:, :, rows, :, source]
