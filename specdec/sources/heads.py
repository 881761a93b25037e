"""Drafters from the hub, downloaded once by the hub's client."""

from __future__ import annotations

import re
from pathlib import Path

from ..host.reasons import foreign

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Files that describe a drafter, and files of weights; no code.
DESCRIPTIONS = ("*.json",)
SAFETENSORS, PICKLES = ("*.safetensors",), ("*.bin", "*.pt")
# Names of a drafter's safetensors; where one is there, the same weights in torch's format are not needed.
ENOUGH = ("model*.safetensors", "medusa_lm_head.safetensors")


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
        wanted = [*DESCRIPTIONS, *(SAFETENSORS if weights else ())]
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if weights and not any(any(folder.glob(pattern)) for pattern in ENOUGH):
            folder = Path(snapshot_download(name, allow_patterns=[*DESCRIPTIONS, *PICKLES]))
        return folder
