"""The noise of `pick_tokens/noise.py` as device functions: equal bits, and equal noise up to a logarithm's rounding."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _words(seed, stream, position, blocks):
    # Broadcasts the scalars to the shape of `blocks`.
    zero = blocks * 0
    return tl.philox(seed, blocks, zero + position.to(tl.uint32), zero + stream.to(tl.uint32), zero)


@triton.jit
def noise_bits(seed, stream, position, first, BLOCK: tl.constexpr):
    """Compute the random words (uint32) of tokens `first` to `first + BLOCK - 1`; both multiples of 4."""
    blocks = (first // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    a, b, c, d = _words(seed, stream, position, blocks)
    # Joined last dimensions vary fastest: [i, j, k] becomes 4 i + 2 j + k.
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BLOCK])


@triton.jit
def token_bits(seed, stream, position, ids):
    """Compute the random words (uint32) of any tokens: word `id & 3` of each token's block."""
    a, b, c, d = _words(seed, stream, position, (ids >> 2).to(tl.uint32))
    even, upper = (ids & 1) == 0, (ids & 2) != 0
    return tl.where(upper, tl.where(even, c, d), tl.where(even, a, b))


@triton.jit
def gumbel(bits):
    """Turn random words into Gumbel noise."""
    v = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.999999940395355224609375)
    # log1p(-v) = log(u) * -v / (u - 1), in which the rounding error of u = 1 - v cancels.
    u = 1 - v
    rounded = 1 - u
    ratio = v / tl.where(rounded == 0, 1.0, rounded)
    return -tl.log(tl.where(rounded == 0, v, -tl.log(u) * ratio))
