"""Folders that a drafter is loaded from by their name: our own format, and released layouts that say all that is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..drafters.protocol import Drafter
from ..model.target import Target
from .format import joined, known_settings, load_drafter_checkpoint, read_description
from .medusa_layout import is_medusa, medusa_tensors, read_medusa
from .target_facts import TargetFacts


def method_in(folder: Path) -> str:
    """Name the method of a folder's drafter, without reading tensors.

    Raises:
        ValueError: if it holds none that can be loaded as it is, or a damaged one.
    """
    return "medusa" if is_medusa(folder) else read_description(folder).method


def load_folder(folder: Path, target: Target, **settings: Any) -> Drafter:
    """Join a folder's drafter to its target.

    Args:
        folder: in our format, or with heads as Medusa's authors release them. These do not say for which model they
            were trained: their width and vocabulary are compared with the target's.
        target: the model that it was made for.
        settings: as in `load_drafter_checkpoint`.

    Raises:
        ValueError: as `load_drafter_checkpoint` does.
    """
    if not is_medusa(folder):
        return load_drafter_checkpoint(folder, target, **settings)
    settings = known_settings("medusa", settings)
    config, mapping = read_medusa(folder, medusa_tensors(folder), TargetFacts.of(target))
    return joined(folder, target, config, mapping.tensors, replace(config, **settings))
