"""The parts of Kangaroo's adapter around its attention (Kangaroo section 3.2).

    h = hidden state after the target's exit layer
    x = h + O Attn(RMSNorm(h))        one residual, no feed-forward part
    y = RMSNorm(x)                    what the target's head reads

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
    """The adapter as `early_exit_step` reads it; `EarlyExitAdapter.step_weights` makes it."""

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

    The statistics are in float32 at least; the weight multiplies in the dtype of `x`, as in the authors' code
    (torch's own norm multiplies before it rounds).
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
        size: D, of a head.
        theta: base of the frequencies.
        dtype: of the result.
    """
    exponents = torch.arange(0, size, 2, device=positions.device).float() / size
    angles = positions[..., None].float() / theta**exponents  # [B, N, D/2]
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[B, N, H, D]` by `[B, N, D]` angles: dimension i turns together with dimension i + D/2."""
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
    """Draft one token per row that has not stopped; arguments as in `early_exit_step`, and the model as functions.

    Args:
        hidden: `[B, E]`.
        k_cache: `[rows, G, S, D]`.
        v_cache: like `k_cache`.
        project: queries `[B, 1, H, D]`, keys and values `[B, G, 1, D]` of `[B, 1, E]` at positions `[B, 1]`.
        finish: what the head reads `[B, 1, E]`, of `[B, 1, E]` and what attention gave `[B, 1, H, D]`.
        choose: tokens and confidences of `[B, E]`.
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
        # Rows of padding write what the first other row does: the same numbers come to the same places twice.
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
    """Make of weights what `early_exit_step_reference` calls."""
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
