"""Sorts positions of a text by the tokens before them: a suffix array of the reversed text, bounded in length.

The look-up needs the positions whose preceding tokens have the longest match with the current text. In this order all
positions with the same preceding tokens are adjacent, and one binary search finds the longest match.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[Any]

CONTEXT = 32
"""Number of tokens by which positions are sorted; longer matches are not distinguished."""
SEPARATOR = 0
"""Separates texts; a token is stored as its id plus one."""


def stored_type(vocabulary_size: int) -> np.dtype[Any]:
    """Return the big-endian dtype of stored tokens, whose byte order equals their token order."""
    return np.dtype(">u2" if vocabulary_size < 1 << 16 else ">u4")


def context_order(tokens: Tokens) -> npt.NDArray[np.uint32]:
    """Sort the positions of reversed text that are followed by a token; equal contexts keep the order of positions.

    Contexts of 2 or 4 tokens are sorted as numbers, then contexts twice as long as pairs of ranks, until all differ or
    they have `CONTEXT` tokens. Each doubling takes one sort.

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
    """Return the keys' dense ranks from 1, and the number of different keys."""
    ordered = key[order]
    differs = np.ones(len(key), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=differs[1:])
    numbers = differs.cumsum(dtype=np.uint64)
    rank = np.empty_like(key)
    rank[order] = numbers
    return rank, int(numbers[-1])
