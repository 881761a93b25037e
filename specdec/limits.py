"""What a tree and a seed may be, known before torch is; tests hold them to what kernels take."""

from __future__ import annotations

from collections.abc import Sequence

DEFAULT_NODES = 16
MAX_NODES = 256
MAX_SEED = 2**64 - 1


def check_max_nodes(max_nodes: int | None) -> None:
    """Raise ValueError unless a tree may have that many nodes; None leaves it to the session."""
    if max_nodes is not None and not 1 <= max_nodes <= MAX_NODES:
        raise ValueError(f"max_nodes: expected 1 to {MAX_NODES}, got {max_nodes}")


def caps(max_nodes: int | Sequence[int] | None, texts: int) -> list[int] | None:
    """Return a cap per text; None for none.

    Raises:
        ValueError: if one is out of range, or there is not one per text.
    """
    if max_nodes is None:
        return None
    each = [max_nodes] * texts if isinstance(max_nodes, int) else list(max_nodes)
    if len(each) != texts:
        raise ValueError(f"max_nodes: expected one per text, {texts}, got {len(each)}")
    for most in each:
        check_max_nodes(most)
    return each
