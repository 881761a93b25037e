"""Positions of a text sorted by what comes before them: the mirror image of a suffix array, bounded in length.

A suffix array sorts positions by the text behind them. Here the question is which places have the longest text before
them in common with the text that is being written, so positions are sorted by that text, read backwards. All places
with the same last tokens then lie side by side, whatever their number, and one binary search finds the longest match.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[Any]

CONTEXT = 32
"""Tokens that positions are sorted by; a longer match is not told from one of this length."""
SEPARATOR = 0
"""Stands between texts; a token is stored as its id plus one."""


def stored_type(vocabulary_size: int) -> np.dtype[Any]:
    """Return the big-endian dtype of stored tokens: compared byte by byte, they are compared token by token."""
    return np.dtype(">u2" if vocabulary_size < 1 << 16 else ">u4")


def context_order(tokens: Tokens) -> npt.NDArray[np.uint32]:
    """Sort the positions of reversed text that a token follows; equal contexts by position.

    Contexts of 2 or 4 tokens are sorted as numbers; then contexts twice as long as pairs of ranks, until none are
    equal or they are `CONTEXT` tokens long. Each doubling is one sort.

    Args:
        tokens: `[n]`, from the last token to the first, with `SEPARATOR` at both ends and between texts.

    Returns:
        `[m]` uint32, the positions in `tokens` of tokens that another token of the same text follows.
    """
    known = 8 // tokens.itemsize  # tokens that make a number of 64 bits
    padded = np.concatenate([tokens, np.zeros(known, tokens.dtype)]).astype(np.uint64)
    key = np.zeros(len(tokens), np.uint64)
    for step in range(known):
        key = (key << np.uint64(8 * tokens.itemsize)) | padded[step : step + len(tokens)]
    del padded
    while True:
        order = key.argsort(kind="stable")
        rank, distinct = _ranks(key, order)
        if known >= CONTEXT or distinct == len(tokens):
            break
        behind = np.zeros(len(tokens), np.uint64)
        behind[:-known] = rank[known:]
        key = rank * np.uint64(distinct + 1) + behind
        known *= 2
    followed = np.zeros(len(tokens), bool)
    followed[1:] = (tokens[1:] != SEPARATOR) & (tokens[:-1] != SEPARATOR)
    return order[followed[order]].astype(np.uint32)


def _ranks(
    key: npt.NDArray[np.uint64], order: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint64], int]:
    """Number the keys by size, equal ones alike, from 1; also return how many differ."""
    ordered = key[order]
    differs = np.ones(len(key), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=differs[1:])
    numbers = differs.cumsum(dtype=np.uint64)
    rank = np.empty_like(key)
    rank[order] = numbers
    return rank, int(numbers[-1])
