"""Memory estimates, and errors that state them when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

# Messages of torch's allocators that raise no error class of their own.
SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


class Needs(NamedTuple):
    """Bytes that decoding with a model needs."""

    weights: int
    prepacked: int
    """Copies of linear layers' weights, if prepacked."""
    cache: int
    """Keys and values per token and row."""

    @classmethod
    def of(cls, model: nn.Module, dtype: torch.dtype, *, exact: bool = False) -> Needs:
        """Compute the needs of a model in a dtype; it may be on the meta device."""
        config: Any = model.config
        config = config.get_text_config()
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
        return cls(
            weights=sum(p.numel() for p in model.parameters()) * dtype.itemsize,
            prepacked=linear * dtype.itemsize,
            cache=2
            * config.num_hidden_layers
            * kv_heads
            * head_dim
            * (8 if exact else dtype.itemsize),
        )


@contextmanager
def enough_memory(needed: Callable[[], str], advice: str) -> Iterator[None]:
    """Turn every kind of out-of-memory error into one `MemoryError` with advice.

    Args:
        needed: returns a description of the memory needed; called only after an error.
        advice: what the user can change.

    Raises:
        MemoryError: with a message of one line.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(
            sign in str(error) for sign in SIGNS
        ):
            raise
        raise MemoryError(f"memory: expected {needed()}, got less; {advice}") from error


def gigabytes(size: float) -> str:
    """Format a number of bytes."""
    return f"{size / 1e9:.2f} GB"
