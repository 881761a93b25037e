"""Attention of a token tree over its prefix and itself (ReDrafter section 4.2), in plain PyTorch.

Slots of one row's cache, for a prefix of P tokens and N nodes:

    0 ........................ P-1 | P .............. P+N-1 | stale
    prefix: seen by every node     | node j: seen by itself | never seen
                                   | and its descendants    |

A slot is not a position: node j sits in slot P + j at position P + depth[j].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..ancestors import unpack_bits


def tree_mask(
    prefix_lens: Tensor,
    ancestors: Tensor,
    depth: Tensor,
    *,
    columns: int,
    group: int = 1,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute the slots that each node sees, as a bias to add to attention scores.

    Args:
        prefix_lens: `[B]` int64, committed tokens per row.
        ancestors: `[B, N, ceil(N / 64)]` int64 bit sets, self included.
        depth: `[B, N]` int64, 0 at the root.
        columns: number of slots to cover, at least `max(prefix_lens) + N`.
        group: query heads per K/V head; each node's row is repeated that often.
        window: sliding window in positions, or None; a query at position p sees positions above `p - window`.
        dtype: dtype of the bias.

    Returns:
        `[B, N * group, columns]`: 0 where visible, -inf elsewhere.
    """
    nodes = depth.shape[1]
    slot = torch.arange(columns, device=depth.device)
    node = (
        slot - prefix_lens[:, None]
    )  # [B, columns]; which node sits in a slot, negative in the prefix
    in_tree = (node >= 0) & (node < nodes)
    node = node.clamp(0, nodes - 1)

    is_ancestor = unpack_bits(ancestors, nodes)  # [B, N, N]
    visible = is_ancestor.gather(2, node[:, None].expand(-1, nodes, -1)) & in_tree[:, None]
    visible |= slot < prefix_lens[:, None, None]  # [B, N, columns]
    if window is not None:
        position = torch.where(in_tree, prefix_lens[:, None] + depth.gather(1, node), slot)
        visible &= position[:, None] > (prefix_lens[:, None] + depth)[..., None] - window
    bias = torch.zeros(visible.shape, dtype=dtype, device=depth.device)
    return bias.masked_fill_(~visible, -torch.inf).repeat_interleave(group, 1)


def tree_attention_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    mask: Tensor,
    cache_rows: Tensor | None,
    shared_rows: Tensor | None,
    shared_lens: Tensor | None,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Compute softmax(softcap(scale q k^T) + mask) v, with the query heads of a K/V head folded into rows.

    Folding lets all nodes and query heads of a group share one read of their K/V head. The arithmetic is in the cache's
    dtype, rounded once to the query's: with a float64 cache, rounded results do not depend on the order of sums (`exact`
    mode).

    Shapes as in `tree_attention`; `mask` is `[B, N * H / G, S]`.
    """
    indices = (len(q), cache_rows, shared_rows, shared_lens)
    k, v = _slots_of_rows(k_cache, *indices), _slots_of_rows(v_cache, *indices)
    rows = rearrange(q, "b n (g h) d -> b g (n h) d", g=k.shape[1]).to(k.dtype)
    if softcap is None:
        out = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask[:, None], scale=scale)
    else:
        scores = _scores(rows, k, mask, scale, softcap)
        accumulator = torch.promote_types(scores.dtype, torch.float32)
        out = scores.softmax(-1, dtype=accumulator).to(v.dtype) @ v
    out = rearrange(out, "b g (n h) d -> b n (g h) d", n=q.shape[1]).to(q.dtype)
    if cache_rows is None:
        return out
    return out.masked_fill((cache_rows < 0)[:, None, None, None], 0)  # rows of padding


def tree_lse_reference(
    q: Tensor,
    k_cache: Tensor,
    mask: Tensor,
    cache_rows: Tensor | None,
    shared_rows: Tensor | None,
    shared_lens: Tensor | None,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Compute the logsumexp of each query's scores, `[B, N, H]`, in float32 or higher."""
    accumulator = torch.promote_types(k_cache.dtype, torch.float32)
    k = _slots_of_rows(k_cache, len(q), cache_rows, shared_rows, shared_lens).to(accumulator)
    rows = rearrange(q, "b n (g h) d -> b g (n h) d", g=k.shape[1]).to(accumulator)
    lse = _scores(rows, k, mask, scale, softcap).logsumexp(-1)
    lse = rearrange(lse, "b g (n h) -> b n (g h)", n=q.shape[1])
    if cache_rows is None:
        return lse
    return lse.masked_fill((cache_rows < 0)[:, None, None], -torch.inf)


def _scores(rows: Tensor, k: Tensor, mask: Tensor, scale: float, softcap: float | None) -> Tensor:
    scores = rows @ k.mT * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores + mask[:, None]


def _slots_of_rows(
    cache: Tensor,
    batch: int,
    cache_rows: Tensor | None,
    shared_rows: Tensor | None,
    shared_lens: Tensor | None,
) -> Tensor:
    """Return each batch row's slots `[B, G, S, D]`: the first `shared_lens` from its shared row, the rest from its own."""
    own = cache[:batch] if cache_rows is None else cache[cache_rows]
    if shared_rows is None or shared_lens is None:
        return own
    slot = torch.arange(cache.shape[2], device=cache.device)
    is_shared = (slot < shared_lens[:, None]) & (shared_rows >= 0)[:, None]  # [B, S]
    return torch.where(is_shared[:, None, :, None], cache[shared_rows.clamp(min=0)], own)
