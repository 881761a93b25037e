"""Names of the methods that can be compared; importable without torch."""

from __future__ import annotations

from collections.abc import Sequence

from ..drafters import check_drafter_name

PLAIN, TRANSFORMERS, TRANSFORMERS_LOOKUP = "plain", "transformers", "transformers-lookup"


def check_methods(names: Sequence[str]) -> None:
    """Raise ValueError unless there is at least one name, and each is a method or a drafter."""
    known = (PLAIN, TRANSFORMERS, TRANSFORMERS_LOOKUP)
    if not names:
        raise ValueError(f"methods: expected some of {', '.join(known)} and drafters, got none")
    for name in names:
        if name in known:
            continue
        try:
            check_drafter_name(name)
        except ValueError as error:
            raise ValueError(
                f"methods: expected some of {', '.join(known)} and drafters, got {name!r} ({error})"
            ) from error
