"""Outputs and workspaces that start as NaN, so that what a kernel forgets to write cannot pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

INTEGER_POISON = -7_777_777


def poison(x: Tensor) -> Tensor:
    """Fill in place with NaN, or with a number that is no index, token or count; bools become true."""
    if x.is_floating_point():
        return x.fill_(torch.nan)
    return x.fill_(True if x.dtype == torch.bool else max(INTEGER_POISON, torch.iinfo(x.dtype).min))


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Make `torch.empty`, `empty_like`, `empty_strided` and `Tensor.new_empty` hand out poison."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: poison(make(*args, **kwargs))

    targets: list[tuple[Any, str]] = [
        (torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty")
    ]  # fmt: skip
    patches = [patch.object(owner, name, poisoned(getattr(owner, name))) for owner, name in targets]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()
