"""Fills new outputs and workspaces with NaN or other values, so that tests detect elements that a kernel does not write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

INTEGER_POISON = -7_777_777


def poison(x: Tensor) -> Tensor:
    """Fill in place with NaN, or with an integer that is no valid index, token or count; bools become True."""
    if x.is_floating_point():
        return x.fill_(torch.nan)
    return x.fill_(True if x.dtype == torch.bool else max(INTEGER_POISON, torch.iinfo(x.dtype).min))


def poisoned_empty() -> AbstractContextManager[None]:
    """Fill all tensors that are created empty with `poison`."""
    return filled_empty(poison)


@contextmanager
def filled_empty(fill: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Make `torch.empty`, `empty_like`, `empty_strided` and `Tensor.new_empty` return tensors filled by `fill`."""

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: fill(make(*args, **kwargs))

    targets: list[tuple[Any, str]] = [
        (torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty")
    ]  # fmt: skip
    patches = [patch.object(owner, name, filled(getattr(owner, name))) for owner, name in targets]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()
