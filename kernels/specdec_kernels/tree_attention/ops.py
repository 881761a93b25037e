"""The public functions `tree_attention` and `tree_attention_lse`, and their registered ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ancestors import WORD
from ..checks import (
    MAX_NODES,
    check_integers,
    check_kernel_float,
    check_last_stride,
    check_shape,
)
from ..dispatch import Impl, chooses_kernel, register
from .reference import tree_attention_reference, tree_lse_reference, tree_mask
from .tiles import SPLIT_POLICIES, SplitPolicy

MAX_HEAD_DIM = 256


def tree_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    prefix_lens: Tensor,
    ancestors: Tensor,
    depth: Tensor,
    cache_rows: Tensor | None = None,
    shared_rows: Tensor | None = None,
    shared_lens: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    mask: Tensor | None = None,
    split_policy: SplitPolicy = "auto",
    impl: Impl = "auto",
) -> Tensor:
    """Compute attention of token trees: each node sees the whole prefix, its ancestors and itself.

    The tree's keys and values must be in the cache already, node `j` of row `b` in slot `prefix_lens[b] + j`. Slots after
    the tree, and cache rows that are not used, may hold anything.

    Args:
        q: `[B, N, H, D]`, queries of the N nodes.
        k_cache: `[rows, G, S, D]` with `H % G == 0` and `S >= max(prefix_lens) + N`.
        v_cache: like `k_cache`.
        prefix_lens: `[B]` int64, cached tokens before the tree.
        ancestors: `[B, N, ceil(N / 64)]` int64 bit sets, self included. Parents must precede children; the kernel
            ignores ancestors with an index above the node's.
        depth: `[B, N]` int64, 0 at the root.
        cache_rows: `[B]` int64, the cache row of each batch row, -1 for a row of padding, whose other arguments may
            hold anything; None for the first B rows in order.
        shared_rows: `[B]` int64, the cache row that holds the beginning of a row's prefix, -1 for its own. The kernel
            reads shared slots once for all rows with the same row and length.
        shared_lens: `[B]` int64, number of prefix slots in that row, at most `prefix_lens`; these slots of the row's own
            may hold anything. Required with `shared_rows`.
        scale: factor of the scores; None for `D ** -0.5`.
        softcap: scores become `softcap * tanh(scores / softcap)` (Gemma 2); None for none.
        window: sliding window in positions; None for none.
        mask: the result of `tree_mask` for the same arguments, for callers that run many layers over one tree with the
            reference; the kernel ignores it.
        split_policy: how the kernel splits prefixes. "auto": into as few parts as fill the GPU. "fixed": every 256 slots,
            beyond 8192 into 32 parts, so that a node's result has the same bits whatever the other nodes and rows and
            the cache's size.
        impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere).

    Returns:
        `[B, N, H, D]` in the dtype of `q`; zeros in rows of padding.

    Raises:
        TypeError: if an index is not int64, or the kernel has no such dtype.
        ValueError: if a shape, a size, a device, `split_policy` or `impl` does not fit.
    """
    rows = (cache_rows, shared_rows, shared_lens)
    _check(q, k_cache, v_cache, prefix_lens, ancestors, depth, *rows, window, split_policy)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    tensors = (q, k_cache, v_cache, prefix_lens, ancestors, depth, *rows)
    if _runs_kernel(impl, *tensors):
        return _tree_attention(*tensors, scale, softcap, window, split_policy)  # type: ignore[no-any-return]
    mask = _mask(mask, q, k_cache, prefix_lens, ancestors, depth, window)
    return tree_attention_reference(q, k_cache, v_cache, mask, *rows, scale=scale, softcap=softcap)


def tree_attention_lse(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    prefix_lens: Tensor,
    ancestors: Tensor,
    depth: Tensor,
    cache_rows: Tensor | None = None,
    shared_rows: Tensor | None = None,
    shared_lens: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    mask: Tensor | None = None,
    split_policy: SplitPolicy = "auto",
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute `tree_attention` and its logsumexp, with which results over other keys can be merged.

    Arguments and errors as in `tree_attention`.

    Returns:
        `[B, N, H, D]` in the dtype of `q`; `[B, N, H]` float32 (float64 for float64 caches), the natural logarithm of
        the sum of exponentials of each query's scores, -inf in rows of padding.
    """
    rows = (cache_rows, shared_rows, shared_lens)
    _check(q, k_cache, v_cache, prefix_lens, ancestors, depth, *rows, window, split_policy)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    tensors = (q, k_cache, v_cache, prefix_lens, ancestors, depth, *rows)
    if _runs_kernel(impl, *tensors):
        return _tree_attention_lse(*tensors, scale, softcap, window, split_policy)  # type: ignore[no-any-return]
    mask = _mask(mask, q, k_cache, prefix_lens, ancestors, depth, window)
    out = tree_attention_reference(q, k_cache, v_cache, mask, *rows, scale=scale, softcap=softcap)
    return out, tree_lse_reference(q, k_cache, mask, *rows, scale=scale, softcap=softcap)


def _check(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    prefix_lens: Tensor,
    ancestors: Tensor,
    depth: Tensor,
    cache_rows: Tensor | None,
    shared_rows: Tensor | None,
    shared_lens: Tensor | None,
    window: int | None,
    split_policy: SplitPolicy,
) -> None:
    if q.ndim != 4 or q.shape[1] < 1:
        raise ValueError(f"q: expected shape [B, N >= 1, H, D], got {list(q.shape)}")
    batch, nodes, heads, size = q.shape
    if (
        k_cache.ndim != 4
        or k_cache.shape != v_cache.shape
        or k_cache.shape[-1] != size
        or k_cache.shape[1] < 1
        or heads % k_cache.shape[1]
    ):
        raise ValueError(
            f"k_cache, v_cache: expected two tensors [rows, G >= 1, S, {size}] with G dividing {heads}, "
            f"got {list(k_cache.shape)} and {list(v_cache.shape)}"
        )
    if nodes > k_cache.shape[2]:
        raise ValueError(
            f"q: expected at most the cache's {k_cache.shape[2]} slots, got {nodes} nodes"
        )
    if cache_rows is None and batch > k_cache.shape[0]:
        raise ValueError(f"q: expected at most {k_cache.shape[0]} rows as in k_cache, got {batch}")
    if (shared_rows is None) != (shared_lens is None):
        raise ValueError("shared_rows, shared_lens: expected both or neither, got one")
    check_shape("prefix_lens", prefix_lens, (batch,))
    check_shape("depth", depth, (batch, nodes))
    check_shape("ancestors", ancestors, (batch, nodes, -(-nodes // WORD)))
    indices = {"cache_rows": cache_rows, "shared_rows": shared_rows, "shared_lens": shared_lens}
    for name, index in indices.items():
        if index is not None:
            check_shape(name, index, (batch,))
    check_integers(prefix_lens=prefix_lens, ancestors=ancestors, depth=depth, **indices)
    if window is not None and window < 1:
        raise ValueError(f"window: expected at least 1, got {window}")
    if split_policy not in SPLIT_POLICIES:
        raise ValueError(f"split_policy: expected 'auto' or 'fixed', got {split_policy!r}")


def _runs_kernel(
    impl: Impl, q: Tensor, k_cache: Tensor, v_cache: Tensor, *indices: Tensor | None
) -> bool:
    if not chooses_kernel(impl, q, k_cache, v_cache, *indices):
        return False
    check_kernel_float(q=q, k_cache=k_cache, v_cache=v_cache)
    check_last_stride(q=q, k_cache=k_cache, v_cache=v_cache)
    nodes, size = q.shape[1], q.shape[3]
    if nodes > MAX_NODES:
        raise ValueError(f"q: expected at most {MAX_NODES} nodes in a kernel, got {nodes}")
    if not 1 <= size <= MAX_HEAD_DIM:
        raise ValueError(f"q: expected heads of 1 to {MAX_HEAD_DIM} in a kernel, got {size}")
    return True


def _mask(
    mask: Tensor | None,
    q: Tensor,
    k_cache: Tensor,
    prefix_lens: Tensor,
    ancestors: Tensor,
    depth: Tensor,
    window: int | None,
) -> Tensor:
    """Check the reference's mask, or compute it."""
    batch, nodes, heads, _ = q.shape
    group, columns = heads // k_cache.shape[1], k_cache.shape[2]
    if mask is not None:
        check_shape("mask", mask, (batch, nodes * group, columns))
        return mask
    return tree_mask(
        prefix_lens,
        ancestors,
        depth,
        columns=columns,
        group=group,
        window=window,
        dtype=k_cache.dtype,
    )


def _launch(*arguments: Any) -> Tensor:
    from .kernel import launch_tree_attention

    return launch_tree_attention(*arguments)


def _launch_lse(*arguments: Any) -> tuple[Tensor, Tensor]:
    from .kernel import launch_tree_attention_lse

    return launch_tree_attention_lse(*arguments)


def _fake(q: Tensor, *others: Any) -> Tensor:
    return q.new_empty(q.shape)


def _fake_lse(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


_ARGUMENTS = (
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor prefix_lens, Tensor ancestors, Tensor depth,"
    " Tensor? cache_rows, Tensor? shared_rows, Tensor? shared_lens,"
    " float scale, float? softcap, int? window, str split_policy)"
)
_tree_attention = register(f"tree_attention{_ARGUMENTS} -> Tensor", _launch, _fake)
_tree_attention_lse = register(
    f"tree_attention_lse{_ARGUMENTS} -> (Tensor out, Tensor lse)", _launch_lse, _fake_lse
)
