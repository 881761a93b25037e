"""Range checks of settings; errors name the setting, the expected range and the value."""

from __future__ import annotations

from typing import Any


def check_between(config: Any, least: int, most: int, *names: str) -> None:
    """Raise ValueError unless each named field is None or from `least` to `most`."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name}: expected {least} to {most}, got {value}")


def check_shares(config: Any, *names: str) -> None:
    """Raise ValueError unless each named field is None, or above 0 and at most 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name}: expected above 0 to 1, got {value}")
