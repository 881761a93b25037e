"""Heads as others publish them, loaded without being converted first: sizes and vocabulary tell whether they fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..drafters.protocol import Drafter
from ..host.json_files import read_json
from ..model.target import Target
from .eagle3_layout import read_eagle3
from .format import CONFIG, join_weights, load_drafter_checkpoint, read_description, settings_of
from .target_facts import TargetFacts
from .tensors import read_tensors


def method_in(folder: Path) -> str:
    """Name the method of a drafter in a folder, in our format or as others publish it.

    Raises:
        ValueError: if the folder holds no drafter.
    """
    return _published(folder) or read_description(folder).method


def load_folder(folder: Path, target: Target, **settings: Any) -> Drafter:
    """Join a drafter in a folder to its target.

    Args:
        folder: in our format, or an EAGLE-3 in the authors' layout or that of speculators.
        target: the model that it was made for.
        settings: how to draft, as in `load_drafter_checkpoint`.

    Returns:
        The drafter, in the target's dtype and on its device.

    Raises:
        ValueError: as `load_drafter_checkpoint` does; of a published head, which has no fingerprint, if its sizes or its
            vocabulary are not the target's.
    """
    method = _published(folder)
    if method is None:
        return load_drafter_checkpoint(folder, target, **settings)
    settings = settings_of(method, settings)
    config, mapping = read_eagle3(
        folder,
        read_tensors(folder),
        read_json(folder / CONFIG),
        TargetFacts.of(target),
        embedding=target.embedding,
    )
    return join_weights(folder, config, replace(config, **settings), mapping.tensors, target)


def _published(folder: Path) -> str | None:
    """Name the method of a published head; None for anything else."""
    if not (folder / CONFIG).is_file():
        return None
    read = read_json(folder / CONFIG)
    if "format" in read:
        return None
    if "speculators_model_type" in read:
        if (kind := read["speculators_model_type"]) != "eagle3":
            raise ValueError(f"{folder}: expected a head of eagle3, got one of {kind}")
        return "eagle3"
    return "eagle3" if "draft_vocab_size" in read else None
