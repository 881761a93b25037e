"""The public function: checks its arguments, then runs the reference."""

from __future__ import annotations

from torch import Tensor

from .reference import tree_attention_reference, tree_mask


def tree_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    prefix_lens: Tensor,
    ancestors: Tensor,
    depth: Tensor,
    cache_rows: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Let each node of a token tree attend to the whole prefix, its ancestors and itself.

    The tree's own keys and values must already lie in the cache, node `j` of row `b` in slot `prefix_lens[b] + j`.

    Args:
        q: `[B, N, H, D]`, queries of the N nodes.
        k_cache: `[rows, G, S, D]` with `H % G == 0` and `S >= max(prefix_lens) + N`.
        v_cache: like `k_cache`.
        prefix_lens: `[B]` int64.
        ancestors: `[B, N, ceil(N / 64)]` int64 bit sets, self included.
        depth: `[B, N]` int64.
        cache_rows: `[B]` int64, the cache row of each batch row; None for the first B in order.
        scale: factor on the scores; None for `D ** -0.5`.
        softcap: scores become `softcap * tanh(scores / softcap)` (Gemma 2); None for none.
        window: sliding window in positions; None for none.
        mask: the result of `tree_mask` for these very arguments, for callers that run many layers over one tree.

    Returns:
        `[B, N, H, D]` in the dtype of `q`.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    batch, nodes, heads, size = q.shape
    if k_cache.shape != v_cache.shape or k_cache.shape[-1] != size or heads % k_cache.shape[1]:
        raise ValueError(
            f"k_cache, v_cache: expected two tensors [rows, G, S, {size}] with G dividing {heads}, "
            f"got {list(k_cache.shape)} and {list(v_cache.shape)}"
        )
    if depth.shape != (batch, nodes):
        raise ValueError(f"depth: expected shape [{batch}, {nodes}], got {list(depth.shape)}")
    group, columns = heads // k_cache.shape[1], k_cache.shape[2]
    if mask is None:
        mask = tree_mask(
            prefix_lens,
            ancestors,
            depth,
            columns=columns,
            group=group,
            window=window,
            dtype=k_cache.dtype,
        )
    elif mask.shape != (batch, nodes * group, columns):
        raise ValueError(
            f"mask: expected shape [{batch}, {nodes * group}, {columns}], got {list(mask.shape)}"
        )
    return tree_attention_reference(
        q,
        k_cache,
        v_cache,
        mask,
        cache_rows=cache_rows,
        scale=size**-0.5 if scale is None else scale,
        softcap=softcap,
    )
