"""Drafters from the hub, downloaded once by the hub's client."""

from __future__ import annotations

import re
from pathlib import Path

from ..host.reasons import foreign

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Files that describe a drafter, and files of weights; no code.
DESCRIPTIONS, WEIGHTS = ("*.json",), ("*.safetensors", "*.bin", "*.pt")


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form ORG/NAME."""
    return HUB_ID.fullmatch(name) is not None


def fetched_head(name: str, *, weights: bool) -> Path:
    """Return the local folder of a hub id, downloaded if missing; without `weights`, its JSON files only.

    Raises:
        ValueError: if there is no such id, or it is neither downloaded nor can be.
    """
    from huggingface_hub import snapshot_download

    from ..host.quiet import quiet

    message = f"drafter: expected a method, a checkpoint's folder or a hub id that can be fetched, got {name!r}"
    with foreign(message), quiet():
        files = [*DESCRIPTIONS, *(WEIGHTS if weights else ())]
        return Path(snapshot_download(name, allow_patterns=files))
