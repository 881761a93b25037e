"""Drafters on the hub: a head that somebody publishes beside a model, fetched once by the hub's own client."""

from __future__ import annotations

import re
from pathlib import Path

from ..host.reasons import foreign

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# What tells whether it is a drafter, and what one is read from; nothing that is code.
DESCRIPTIONS, WEIGHTS = ("*.json",), ("*.safetensors", "*.bin", "*.pt")


def is_hub_id(name: str) -> bool:
    """Tell whether a name is of the form ORG/NAME."""
    return HUB_ID.fullmatch(name) is not None


def fetched_head(name: str, *, weights: bool) -> Path:
    """Return the folder of a hub id's files, fetched if they are not there yet; with weights, or what describes them alone.

    Raises:
        ValueError: if there is no such id, or it cannot be fetched and is not there.
    """
    from huggingface_hub import snapshot_download

    from ..host.quiet import quiet

    message = f"drafter: expected a method, a checkpoint's folder or a hub id that can be fetched, got {name!r}"
    with foreign(message), quiet():
        files = [*DESCRIPTIONS, *(WEIGHTS if weights else ())]
        return Path(snapshot_download(name, allow_patterns=files))
