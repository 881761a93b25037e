"""A pytest plugin: property tests try few examples, for a run whose time is short."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

MOST = 3


def pytest_configure() -> None:
    make = settings.__init__

    def few(self: settings, *args: Any, **options: Any) -> None:
        if "max_examples" in options:
            options["max_examples"] = min(MOST, options["max_examples"])
        make(self, *args, **options)

    settings.__init__ = few  # type: ignore[method-assign]
