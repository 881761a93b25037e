"""Lazy imports: names of a package that are imported at their first use (PEP 562)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any


def lazily(
    package: str,
    names_of: Mapping[str, Sequence[str]],
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Create a package's `__getattr__` and `__dir__`.

    Args:
        package: its `__name__`.
        names_of: per module of the package, the names that the package exports.
        renamed: old names and their new ones.
    """
    homes = {name: module for module, names in names_of.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name in renamed:
            warnings.warn(
                f"{package}.{name} is {renamed[name]} now; the next release drops the old name",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(sys.modules[package], renamed[name])
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)  # later accesses do not call `__getattr__`
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return __getattr__, __dir__
