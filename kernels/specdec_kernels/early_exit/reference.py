"""The parts of Kangaroo's adapter around its attention (Kangaroo section 3.2).

    h = hidden state after the target's exit layer
    x = h + O Attn(RMSNorm(h))        one residual, no feed-forward part
    y = RMSNorm(x)                    what the target's head reads

Attention is causal and rotary at absolute positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
