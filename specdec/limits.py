"""What a tree and a seed may be; known before torch is."""

from __future__ import annotations

MAX_NODES = 16
LARGEST_TREE = 256
LARGEST_SEED = 2**64 - 1


def check_max_nodes(max_nodes: int | None) -> None:
    """Raise ValueError unless a tree may have that many nodes; None leaves it to the session."""
    if max_nodes is not None and not 1 <= max_nodes <= LARGEST_TREE:
        raise ValueError(f"max_nodes: expected 1 to {LARGEST_TREE}, got {max_nodes}")
