"""Counter-based noise: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    key      the seed, as two words of 32 bits
    counter  (id >> 2, position, stream, 0)
    word     id & 3

A token's noise does not depend on the order, batch or subset in which it is computed, nor on the implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_integers, check_shape

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORDS = 4
LOW = 0xFFFFFFFF
# Largest argument: below 1, whose noise would be -infinity, and representable in float32.
MOST = 1 - 2**-24


def gumbel_noise(seed: int, streams: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """Compute the noise of given tokens; the arguments broadcast against each other.

    Args:
        seed: 0 to 2^64 - 1.
        streams: int64, 0 to 2^32 - 1, one per text; of other values the lower 32 bits are used.
        positions: int64, 0 to 2^32 - 1, absolute positions without padding; of other values the lower 32 bits.
        ids: int64, 0 to 2^32 - 1, ids in the target's vocabulary.

    Returns:
        Gumbel-distributed noise, float32.

    Raises:
        TypeError: if a tensor is not int64.
        ValueError: if `seed` does not fit.
    """
    check_seed(seed)
    check_integers(streams=streams, positions=positions, ids=ids)
    words = _words(seed, streams, positions, ids >> 2)
    word = (ids & 3).expand(words.shape[1:])
    return gumbel(words.gather(0, word[None])[0])


def vocabulary_noise(seed: int, streams: Tensor, positions: Tensor, size: int) -> Tensor:
    """Compute the noise of all tokens of a vocabulary, with a quarter of `gumbel_noise`'s work per token.

    Args:
        seed: as in `gumbel_noise`.
        streams: `[R]` int64.
        positions: `[R]` int64.
        size: V.

    Returns:
        `[R, V]` float32.

    Raises:
        TypeError: if a tensor is not int64.
        ValueError: if a shape or `seed` does not fit.
    """
    check_seed(seed)
    check_integers(streams=streams, positions=positions)
    check_shape("positions", positions, streams.shape)
    blocks = torch.arange(-(-size // WORDS), device=streams.device)
    words = _words(seed, streams[:, None], positions[:, None], blocks)  # [4, R, blocks]
    return gumbel(words).permute(1, 2, 0).flatten(1)[:, :size]


def check_seed(seed: int) -> None:
    """Raise ValueError unless `seed` is an integer of 64 bits."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected 0 to 2^64 - 1, got {seed}")


def gumbel(bits: Tensor) -> Tensor:
    """Turn 32-bit words into Gumbel noise; adding 0.5 keeps it finite for a word of 0, where it is largest (33 log 2)."""
    # In place, as on a CPU new memory costs as much as a step.
    v = bits.float().add_(0.5).mul_(2**-32).clamp_(max=MOST)
    return v.neg_().log1p_().neg_().log_().neg_()


def philox(seed: int, counters: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Compute the four words of each counter.

    Args:
        seed: 0 to 2^64 - 1.
        counters: four int64 tensors that broadcast, with values from 0 to 2^32 - 1.

    Returns:
        `[4, ...]` int64, words from 0 to 2^32 - 1.
    """
    c0, c1, c2, c3 = counters
    k0, k1 = seed & LOW, seed >> 32
    for _ in range(ROUNDS):
        # c m may overflow, which compilers assume never happens for signed numbers; c (m - 2^32) cannot. The lower halves
        # are equal, and the upper half is larger by c.
        first, second = c0 * (MULTIPLIERS[0] - 2**32), c2 * (MULTIPLIERS[1] - 2**32)
        upper0, upper2 = (first >> 32).add_(c0), (second >> 32).add_(c2)
        c0, c2 = (upper2 ^ c1).bitwise_xor_(k0), (upper0 ^ c3).bitwise_xor_(k1)
        c1, c3 = second.bitwise_and_(LOW), first.bitwise_and_(LOW)
        k0, k1 = k0 + KEY_STEPS[0] & LOW, k1 + KEY_STEPS[1] & LOW
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3))


def _words(seed: int, streams: Tensor, positions: Tensor, blocks: Tensor) -> Tensor:
    # `blocks` is masked too: Inductor's C++ would treat an `arange` times a number as 32-bit indices.
    last = torch.zeros_like(blocks)
    return philox(seed, (blocks & LOW, positions & LOW, streams & LOW, last))
