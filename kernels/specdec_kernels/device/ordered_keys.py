"""Keys: a float32 number and an index in one int64, so that an integer maximum finds the best and breaks ties.

    bits 63..32    the number's bits in integer order: negative numbers have their lower bits flipped
    bits 31..0     2^32 - 1 - index, so that the lowest index wins among equal numbers

Both zeros are equal; NaN of either sign ranks above all numbers, as in `torch.topk`.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Below the upper bits of every number, negative infinity included.
NO_NUMBER = tl.constexpr(-(2**31))
NO_KEY = tl.constexpr(-(2**63))


@triton.jit
def _flip(bits):
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def sortable(number):
    """Turn float32 numbers into int32 with the same order: the upper bits of their keys."""
    bits = tl.where(number == 0, 0.0, number).to(tl.int32, bitcast=True)
    return tl.where(number != number, 0x7FFFFFFF, _flip(bits))


@triton.jit
def join_key(upper, index):
    """Join `sortable` numbers and indices from 0 to 2^32 - 1."""
    return (upper.to(tl.int64) << 32) | (0xFFFFFFFF - index.to(tl.int64))


@triton.jit
def make_key(number, index):
    """Join float32 numbers and indices from 0 to 2^32 - 1."""
    return join_key(sortable(number), index)


@triton.jit
def key_number(key):
    """Return a key's number."""
    return _flip((key >> 32).to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def key_index(key):
    """Return a key's index, as int64."""
    return 0xFFFFFFFF - (key & 0xFFFFFFFF)
