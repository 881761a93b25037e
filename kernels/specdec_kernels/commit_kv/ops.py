"""The public function `commit_kv` and its registered op."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_integers, check_last_stride, check_shape
from ..dispatch import Impl, chooses_kernel, register
from .reference import commit_kv_reference


def commit_kv(
    kv: Tensor,
    path: Tensor,
    lengths: Tensor,
    *,
    prefix_lens: Tensor,
    cache_rows: Tensor | None = None,
    impl: Impl = "auto",
) -> None:
    """Move the keys and values of accepted nodes to the end of the prefix, in place, for all layers.

    Afterwards the first `prefix_lens[b] + lengths[b] + 1` slots of row `b` are its prefix; later slots are stale.

    Args:
        kv: `[layers, 2, rows, G, S, D]`, keys and values; node `j` of row `b` is in slot `prefix_lens[b] + j`.
        path: `[B, N]` int64 from `accept_tree`.
        lengths: `[B]` int64 from `accept_tree`; a row with 0 or -1 is not changed.
        prefix_lens: `[B]` int64, with `prefix_lens + N <= S`.
        cache_rows: `[B]` int64, distinct cache rows; -1 for a row of padding, which is not changed and whose other
            arguments may hold anything. None for the first B rows in order.
        impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere).

    Raises:
        TypeError: if an index is not int64.
        ValueError: if a shape, a device or `impl` does not fit.
    """
    if kv.ndim != 6 or kv.shape[1] != 2:
        raise ValueError(f"kv: expected shape [layers, 2, rows, G, S, D], got {list(kv.shape)}")
    if path.ndim != 2 or path.shape[1] < 1:
        raise ValueError(f"path: expected shape [B, N >= 1], got {list(path.shape)}")
    batch, nodes = path.shape
    check_shape("lengths", lengths, (batch,))
    check_shape("prefix_lens", prefix_lens, (batch,))
    if nodes > kv.shape[4]:
        raise ValueError(
            f"path: expected at most the cache's {kv.shape[4]} slots, got {nodes} nodes"
        )
    if cache_rows is None:
        if batch > kv.shape[2]:
            raise ValueError(f"path: expected at most {kv.shape[2]} rows as in kv, got {batch}")
    else:
        check_shape("cache_rows", cache_rows, (batch,))
    check_integers(path=path, lengths=lengths, prefix_lens=prefix_lens, cache_rows=cache_rows)
    kernel = chooses_kernel(impl, kv, path, lengths, prefix_lens, cache_rows)
    if kernel:
        check_last_stride(kv=kv)
    if nodes == 1:
        return  # a single root is in place already
    if not kernel:
        commit_kv_reference(kv, path, lengths, prefix_lens, cache_rows)
        return
    if cache_rows is None:
        cache_rows = torch.arange(batch, device=kv.device)
    _commit_kv(kv, path, lengths, prefix_lens, cache_rows)


def _launch(*inputs: Tensor) -> None:
    from .kernel import launch_commit_kv

    launch_commit_kv(*inputs)


def _fake(*inputs: Tensor) -> None:
    return None


_commit_kv = register(
    "commit_kv(Tensor(a!) kv, Tensor path, Tensor lengths, Tensor prefix_lens, Tensor cache_rows) -> ()",
    _launch,
    _fake,
)
