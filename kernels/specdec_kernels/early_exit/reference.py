"""The parts of Kangaroo's adapter around its attention (Kangaroo section 3.2).

    h = hidden state after the target's exit layer
    x = h + O Attn(RMSNorm(h))        one residual, no feed-forward part
    y = RMSNorm(x)                    the input of the target's head

Attention is causal and rotary at absolute positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..lm_head import HeadWeights, SureToken
from ..lm_head.reference import lm_head_topk_reference, sure_token
from ..tree_attention import tree_attention

Project = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Finish = Callable[[Tensor, Tensor], Tensor]
Choose = Callable[[Tensor], SureToken]


class AdapterWeights(NamedTuple):
    """The adapter's weights for `early_exit_step`; returned by `EarlyExitAdapter.step_weights`."""

    input_norm: Tensor
    """`[E]`."""
    q_proj: Tensor
    """`[H * D, E]`."""
    k_proj: Tensor
    """`[G * D, E]`."""
    v_proj: Tensor
    """`[G * D, E]`."""
    o_proj: Tensor
    """`[E, H * D]`."""
    output_norm: Tensor
    """`[E]`."""
    rope_theta: float
    """Base of the rotary frequencies."""
    norm_eps: float
    """Added to mean squares."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide `[..., E]` by its root mean square, then multiply by `weight [E]`.

    Statistics are in float32 or higher; the weight multiplies in the dtype of `x`, as in the authors' code (torch's
    RMSNorm multiplies before rounding).
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def rotation(
    positions: Tensor, size: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines `[B, N, D]` of rotary position embeddings, angles in float32.

    Args:
        positions: `[B, N]` int64, or broadcastable.
        size: D, the head size.
        theta: base of the frequencies.
        dtype: dtype of the result.
    """
    exponents = torch.arange(0, size, 2, device=positions.device).float() / size
    angles = positions[..., None].float() / theta**exponents  # [B, N, D/2]
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[B, N, H, D]` by angles `[B, N, D]`: dimension i together with dimension i + D/2."""
    first, second = x.chunk(2, -1)
    return x * cos[..., None, :] + torch.cat([-second, first], -1) * sin[..., None, :]


def early_exit_step_reference(
    hidden: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    project: Project,
    finish: Finish,
    choose: Choose,
    *,
    prefix_lens: Tensor,
    positions: Tensor,
    stopped: Tensor,
    tokens: Tensor,
    confidence: Tensor,
    cache_rows: Tensor | None,
    appends: Tensor | None,
    eta: float,
) -> None:
    """Reference implementation; arguments as in `early_exit_step`, with the model as functions.

    Args:
        hidden: `[B, E]`.
        k_cache: `[rows, G, S, D]`.
        v_cache: like `k_cache`.
        project: computes queries `[B, 1, H, D]`, keys and values `[B, G, 1, D]` from `[B, 1, E]` and positions `[B, 1]`.
        finish: computes the head's input `[B, 1, E]` from `[B, 1, E]` and the result of attention `[B, 1, H, D]`.
        choose: computes tokens and confidences from `[B, E]`.
        prefix_lens: `[B]` int64; this and the others as in `early_exit_step`.
        positions: `[B]` int64.
        stopped: `[B]` bool.
        tokens: `[B]` int64.
        confidence: `[B]` float32.
        cache_rows: `[B]` int64, or None.
        appends: `[B]` bool, or None.
        eta: a number.
    """
    batch, slots = len(hidden), k_cache.shape[2]
    nodes = hidden[:, None]
    q, k, v = project(nodes, positions[:, None])
    written = ~stopped if appends is None else ~stopped | appends
    written = written & (prefix_lens >= 0) & (prefix_lens < slots)
    slot = prefix_lens.clamp(0, slots - 1)
    rows = torch.arange(batch, device=hidden.device)
    key, value, idle = k[:, :, 0], v[:, :, 0], stopped
    if cache_rows is not None:
        there = cache_rows >= 0
        idle = stopped | ~there
        # Rows of padding repeat the first other row: the same numbers are written to the same slots twice.
        like = torch.where(there, rows, there.long().argmax())
        rows, slot, written, key, value = (
            x[like] for x in (cache_rows, slot, written & there, key, value)
        )
    written = written[:, None, None]
    for cache, new in ((k_cache, key), (v_cache, value)):
        cache[rows, :, slot] = torch.where(written, new.to(cache.dtype), cache[rows, :, slot])
    itself = torch.ones((batch, 1, 1), dtype=torch.int64, device=hidden.device)
    attended = tree_attention(
        q,
        k_cache,
        v_cache,
        prefix_lens=slot,
        ancestors=itself,
        depth=itself[..., 0] - 1,
        cache_rows=cache_rows,
        impl="reference",
    )
    sure = choose(finish(nodes, attended)[:, 0])
    tokens.copy_(torch.where(idle, tokens, sure.tokens))
    confidence.copy_(torch.where(idle, confidence, sure.confidence.float()))
    positions.copy_(torch.where(idle, positions, positions + 1))
    unsure = ~(confidence >= eta)
    stopped.logical_or_(unsure if cache_rows is None else unsure & there)


def functional_parts(
    adapter: AdapterWeights, head: HeadWeights, head_dim: int
) -> tuple[Project, Finish, Choose]:
    """Create the functions that `early_exit_step_reference` calls from weights."""
    norm_eps = adapter.norm_eps

    def project(hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = rms_norm(hidden, adapter.input_norm, norm_eps)
        angles = rotation(positions, head_dim, adapter.rope_theta, hidden.dtype)
        q, k, v = (
            rearrange(F.linear(normed, weight), "b n (h d) -> b n h d", d=head_dim)
            for weight in (adapter.q_proj, adapter.k_proj, adapter.v_proj)
        )
        return rotate(q, *angles), rotate(k, *angles).transpose(1, 2), v.transpose(1, 2)

    def finish(hidden: Tensor, attended: Tensor) -> Tensor:
        x = hidden + F.linear(attended.flatten(2), adapter.o_proj)
        return rms_norm(x, adapter.output_norm, norm_eps)

    def choose(rows: Tensor) -> SureToken:
        return sure_token(lm_head_topk_reference(rows, head, 1))

    return project, finish, choose
