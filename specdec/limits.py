"""What a tree and a seed may be, known before torch is; tests hold them to what kernels take."""

from __future__ import annotations

DEFAULT_NODES = 16
MAX_NODES = 256
MAX_SEED = 2**64 - 1


def check_max_nodes(max_nodes: int | None) -> None:
    """Raise ValueError unless a tree may have that many nodes; None leaves it to the session."""
    if max_nodes is not None and not 1 <= max_nodes <= MAX_NODES:
        raise ValueError(f"max_nodes: expected 1 to {MAX_NODES}, got {max_nodes}")
