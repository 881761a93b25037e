"""The first launch of a step (norm, queries, keys, values) and the last (choice and stop rule).

    _adapter_qkv_kernel    grid (row blocks, heads * chunks): BLOCK_P pairs (i, i + D/2) of one head per program
        weight rows 0, D/2, 1, D/2 + 1, …  @  rms_norm(hidden)  ─► acc [2 * BLOCK_P, BLOCK_R] ─► pairs, rotated
        q ─► [B, H, D]        k, v ─► slot P of their cache row
    _exit_kernel           grid (B): the tiles' best keys, maxima and sums ─► token, confidence, position, stop

In this order of rows both halves of a pair are neighbours, so one product computes them and a split separates them. Every
program computes the row's norm again, as a row is a few KB and in L2.
"""

from __future__ import annotations

from math import log2

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.ordered_keys import NO_KEY, key_index
from ..device.skinny_linear import add_product, choose_tiles, inverse_rms
from ..gpu import gpu_of
from ..tree_attention.loops import cache_row


@triton.jit
def _cos_sin(angle):
    """Compute cosine and sine of float32 angles of any size, to float32 accuracy.

    The functions of Triton's math library would use local memory for the rare large angles.
    """
    wide = angle.to(tl.float64)
    quarter = tl.floor(wide * 0.6366197723675814 + 0.5)  # 2 / pi
    x = (wide - quarter * 1.5707963267948966).to(tl.float32)  # -pi / 4 to pi / 4
    s = x * x
    sine = x + x * s * (-1 / 6 + s * (1 / 120 + s * (-1 / 5040 + s * (1 / 362880))))
    cosine = 1 + s * (-1 / 2 + s * (1 / 24 + s * (-1 / 720 + s * (1 / 40320 - s * (1 / 3628800)))))
    turn = quarter.to(tl.int64) & 3
    odd = (turn & 1) == 1
    cos, sin = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where((turn == 1) | (turn == 2), -cos, cos), tl.where(turn >= 2, -sin, sin)


@triton.jit
def _rotation(positions, pair, D: tl.constexpr, LOG2_THETA: tl.constexpr):
    """Compute float32 angles as `rotation` does: position / theta ** (2 i / D)."""
    exponent = (2 * pair).to(tl.float32)
    exponent = tl.div_rn(exponent, tl.zeros_like(exponent) + D)
    frequency = tl.exp2(exponent.to(tl.float64) * LOG2_THETA).to(tl.float32)
    position, frequency = tl.broadcast(positions.to(tl.float32)[None, :], frequency[:, None])
    return _cos_sin(tl.div_rn(position, frequency))


@triton.jit
def _store_pairs(out_rows, first, second, o_p, mask, D: tl.constexpr):
    """Store both halves of pairs.

    Called in each branch: Triton 3.6 fails to compile branches that end with different pointers for AMD.
    """
    tl.store(out_rows[None, :] + o_p[:, None], first, mask=mask)
    tl.store(out_rows[None, :] + (o_p + D // 2)[:, None], second, mask=mask)


@triton.jit(do_not_specialize=["stride_tree", "rows", "slots"])
def _adapter_qkv_kernel(
    hidden_ptr,
    norm_ptr,
    q_weight_ptr,
    k_weight_ptr,
    v_weight_ptr,
    k_cache_ptr,
    v_cache_ptr,
    prefix_ptr,
    cache_rows_ptr,
    positions_ptr,
    stopped_ptr,
    appends_ptr,
    q_ptr,
    tree_ptr,
    stride_hidden,
    stride_k_row,
    stride_k_head,
    stride_k_slot,
    stride_v_row,
    stride_v_head,
    stride_v_slot,
    stride_tree,
    rows,
    slots,
    size,
    norm_eps,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    LOG2_THETA: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE: tl.constexpr,
):
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    chunks: tl.constexpr = (D // 2 + BLOCK_P - 1) // BLOCK_P
    head, chunk = tl.program_id(1) // chunks, tl.program_id(1) % chunks
    m_r = o_r < rows
    # Rows beyond the end read the last row again, so the loops need no masks.
    i_r = tl.minimum(o_r, rows - 1).to(tl.int64)
    prefix = tl.load(prefix_ptr + i_r)
    stopped = tl.load(stopped_ptr + i_r).to(tl.int32) != 0
    row = cache_row(cache_rows_ptr, i_r)
    if tl.program_id(1) == 0:  # the tree for attention: one node, its own ancestor
        inside = tl.minimum(tl.maximum(prefix, 0), slots - 1)
        tl.store(tree_ptr + i_r, tl.where(stopped, 0, inside), mask=m_r)
        tl.store(tree_ptr + stride_tree + i_r, 1, mask=m_r)
        tl.store(tree_ptr + 2 * stride_tree + i_r, 0, mask=m_r)
        idle = stopped | (row < 0)  # for the launches after attention
        tl.store(tree_ptr + 3 * stride_tree + i_r, idle.to(tl.int64), mask=m_r)
    written = stopped == 0
    if appends_ptr is not None:
        appended = tl.load(appends_ptr + i_r).to(tl.int32) != 0
        written = written | (appended & (head >= H))
    written = written & m_r & (row >= 0)
    if tl.max(written.to(tl.int32), 0) == 0:
        return

    o_j = tl.arange(0, 2 * BLOCK_P)
    pair = tl.minimum(chunk * BLOCK_P + o_j // 2, D // 2 - 1)
    feature = (o_j % 2) * (D // 2) + pair
    # Selected instead of branched: see `_store_pairs`.
    w_ptr = tl.where(head < H + G, k_weight_ptr, v_weight_ptr)
    w_ptr = tl.where(head < H, q_weight_ptr, w_ptr)
    w_head = head - tl.where(head < H, 0, tl.where(head < H + G, H, H + G))
    w_ptr += (w_head * D).to(tl.int64) * size
    x_rows = hidden_ptr + i_r * stride_hidden
    inverse = inverse_rms(x_rows, size, norm_eps, BLOCK_K, BLOCK_R)
    acc = tl.zeros([2 * BLOCK_P, BLOCK_R], tl.float32)
    w_rows = w_ptr + feature.to(tl.int64) * size
    acc = add_product(acc, w_rows, x_rows, size, BLOCK_K, WHOLE, norm_ptr, inverse)

    dtype = q_ptr.dtype.element_ty
    pairs = tl.permute(tl.reshape(acc.to(dtype), [BLOCK_P, 2, BLOCK_R]), [0, 2, 1])
    first, second = tl.split(pairs)
    o_p = chunk * BLOCK_P + tl.arange(0, BLOCK_P)
    m_pr = (o_p < D // 2)[:, None] & written[None, :]
    if head < H + G:
        cos, sin = _rotation(tl.load(positions_ptr + i_r), o_p, D, LOG2_THETA)
        cos, sin = cos.to(dtype).to(tl.float32), sin.to(dtype).to(tl.float32)
        one, two = first.to(tl.float32), second.to(tl.float32)
        first, second = (one * cos - two * sin).to(dtype), (two * cos + one * sin).to(dtype)
    if head < H:
        _store_pairs(q_ptr + i_r * (H * D) + head * D, first, second, o_p, m_pr, D)
    else:
        m_pr = m_pr & ((prefix >= 0) & (prefix < slots))[None, :]
        if head < H + G:
            out = k_cache_ptr + row * stride_k_row + prefix * stride_k_slot
            out += (head - H).to(tl.int64) * stride_k_head
            _store_pairs(out, first, second, o_p, m_pr, D)
        else:
            out = v_cache_ptr + row * stride_v_row + prefix * stride_v_slot
            out += (head - H - G).to(tl.int64) * stride_v_head
            _store_pairs(out, first, second, o_p, m_pr, D)


# Tokens and confidences may be columns of larger tensors, with any alignment.
@triton.jit(
    do_not_specialize=["stride_tokens", "stride_confidence", "tiles"],
    do_not_specialize_on_alignment=["tokens_ptr", "confidence_ptr"],
)
def _exit_kernel(
    keys_ptr,
    maxima_ptr,
    sums_ptr,
    id_map_ptr,
    idle_ptr,
    positions_ptr,
    stopped_ptr,
    tokens_ptr,
    confidence_ptr,
    stride_tokens,
    stride_confidence,
    tiles,
    eta,
    BLOCK_T: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if tl.load(idle_ptr + row) != 0:
        return
    o_t = tl.arange(0, BLOCK_T)
    m_t = o_t < tiles
    at = row * tiles + o_t
    maxima = tl.load(maxima_ptr + at, mask=m_t, other=float("-inf"))
    sums = tl.load(sums_ptr + at, mask=m_t, other=0.0)
    best = tl.max(tl.load(keys_ptr + at, mask=m_t, other=NO_KEY), 0)
    token = key_index(best)
    if id_map_ptr is not None:
        token = tl.load(id_map_ptr + token)
    highest = tl.max(maxima, 0)
    # If all logits are -inf, -inf - -inf would be NaN; with this base their sum is 0.
    base = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.sum(tl.where(m_t, sums * tl.exp(maxima - base), 0.0), 0)
    confidence = tl.where(total == 0, 0.0, 1 / total)
    tl.store(tokens_ptr + row * stride_tokens, token)
    tl.store(confidence_ptr + row * stride_confidence, confidence)
    tl.store(positions_ptr + row, tl.load(positions_ptr + row) + 1)
    sure = confidence >= tl.full([], eta, tl.float32)
    tl.store(stopped_ptr + row, sure == 0)  # True for NaN too


def launch_adapter_qkv(
    hidden: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    prefix_lens: Tensor,
    cache_rows: Tensor | None,
    positions: Tensor,
    stopped: Tensor,
    appends: Tensor | None,
    input_norm: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    rope_theta: float,
    norm_eps: float,
) -> tuple[Tensor, Tensor]:
    """Compute queries, and append keys and values; arguments as in `early_exit_step`.

    Returns:
        `q [B, H, D]`, unwritten for idle rows (stopped or padding); `tree [4, B]` int64: prefix lengths for attention,
        ancestors and depths of one-node trees, and whether a row is idle.
    """
    (batch, size), (_, kv_heads, slots, head_dim) = hidden.shape, k_cache.shape
    heads = len(q_weight) // head_dim
    features = (heads + 2 * kv_heads) * head_dim
    tiles = choose_tiles(batch, features, size, hidden.dtype, gpu_of(hidden.device))
    # At most as many pairs as a head has, and at least 8, the smallest product.
    block_p = max(8, min(tiles.features // 2, triton.next_power_of_2(head_dim // 2)))
    chunks = -(-(head_dim // 2) // block_p)
    q = torch.empty((batch, heads, head_dim), dtype=hidden.dtype, device=hidden.device)
    # Rows of a multiple of 16 bytes: alignment that depends on the batch size would compile the kernel twice.
    tree = torch.empty((4, batch + batch % 2), dtype=torch.int64, device=hidden.device)[:, :batch]
    _adapter_qkv_kernel[(-(-batch // tiles.rows), (heads + 2 * kv_heads) * chunks)](
        hidden,
        input_norm,
        q_weight,
        k_weight,
        v_weight,
        k_cache,
        v_cache,
        *(None if x is None else x.contiguous() for x in (prefix_lens, cache_rows)),
        positions,
        stopped,
        None if appends is None else appends.contiguous(),
        q,
        tree,
        hidden.stride(0),
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        tree.stride(0),
        batch,
        slots,
        size,
        norm_eps,
        H=heads,
        G=kv_heads,
        D=head_dim,
        LOG2_THETA=log2(rope_theta),
        BLOCK_P=block_p,
        BLOCK_R=tiles.rows,
        BLOCK_K=tiles.depth,
        WHOLE=size % tiles.depth == 0,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return q, tree


def launch_exit(
    keys: Tensor,
    maxima: Tensor,
    sums: Tensor,
    id_map: Tensor | None,
    idle: Tensor,
    positions: Tensor,
    stopped: Tensor,
    tokens: Tensor,
    confidence: Tensor,
    eta: float,
) -> None:
    """Choose tokens from the results of `launch_head_tiles` and `launch_adapter_qkv`; others as in `early_exit_step`."""
    rows, tiles = maxima.shape
    _exit_kernel[(rows,)](
        keys[..., 0].contiguous(),
        maxima,
        sums,
        None if id_map is None else id_map.contiguous(),
        idle,
        positions,
        stopped,
        tokens,
        confidence,
        tokens.stride(0),
        confidence.stride(0),
        tiles,
        eta,
        BLOCK_T=triton.next_power_of_2(tiles),
        num_warps=4,  # Llama 3's 1002 tiles are 8 per lane
    )
