"""Limits of trees and seeds, importable without torch; tests compare them with the kernels' limits."""

from __future__ import annotations

from collections.abc import Sequence

DEFAULT_NODES = 16
"""Most nodes of a row's tree, root included, for a drafter without a calibration."""
MAX_NODES = 256
"""Most nodes of a row's tree, root included; the kernels' limit."""
MAX_SEED = 2**64 - 1
"""Largest seed: the noise generator's key has 64 bits."""


def check_max_nodes(max_nodes: int | None) -> None:
    """Raise ValueError unless `max_nodes` is None or 1 to `MAX_NODES`."""
    if max_nodes is not None and not 1 <= max_nodes <= MAX_NODES:
        raise ValueError(f"max_nodes: expected 1 to {MAX_NODES}, got {max_nodes}")


def caps(max_nodes: int | Sequence[int] | None, texts: int) -> list[int] | None:
    """Return `max_nodes` as one number per text, or None.

    Raises:
        ValueError: if a number is out of range, or there is not one per text.
    """
    if max_nodes is None:
        return None
    each = [max_nodes] * texts if isinstance(max_nodes, int) else list(max_nodes)
    if len(each) != texts:
        raise ValueError(f"max_nodes: expected one per text, {texts}, got {len(each)}")
    for most in each:
        check_max_nodes(most)
    return each
