"""Folders that `load_drafter` accepts: our format, and released layouts that need no further options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..drafters.protocol import Drafter
from ..host.json_files import read_json
from ..model.target import Target
from .eagle3_layout import read_eagle3
from .format import CONFIG, joined, known_settings, load_drafter_checkpoint, read_description
from .medusa_layout import is_medusa, medusa_tensors, read_medusa
from .target_facts import TargetFacts
from .tensors import read_tensors


def method_in(folder: Path) -> str:
    """Return the method of the drafter in a folder, without reading tensors.

    Raises:
        ValueError: if it holds none that can be loaded as it is, or a damaged one.
    """
    return _published(folder) or read_description(folder).method


def load_folder(folder: Path, target: Target, **settings: Any) -> Drafter:
    """Load the drafter of a folder.

    Args:
        folder: in our format, with heads as Medusa's authors release them, or with an EAGLE-3 in the authors' layout or that of
            speculators. These do not say for which model they were trained: sizes and vocabulary are compared with the target's.
        target: the model that it was made for.
        settings: as in `load_drafter_checkpoint`.

    Raises:
        ValueError: as `load_drafter_checkpoint` does.
    """
    method = _published(folder)
    if method is None:
        return load_drafter_checkpoint(folder, target, **settings)
    settings = known_settings(method, settings)
    facts = TargetFacts.of(target)
    config: Any
    if method == "medusa":
        config, mapping = read_medusa(folder, medusa_tensors(folder), facts)
    else:
        theirs, tensors = read_json(folder / CONFIG), read_tensors(folder)
        config, mapping = read_eagle3(folder, tensors, theirs, facts, embedding=target.embedding)
    return joined(folder, target, config, mapping.tensors, replace(config, **settings))


def _published(folder: Path) -> str | None:
    """Return the method of a published head, without reading tensors; None for anything else."""
    if is_medusa(folder):
        return "medusa"
    if not (folder / CONFIG).is_file() or "format" in (read := read_json(folder / CONFIG)):
        return None
    if (kind := read.get("speculators_model_type", "eagle3")) != "eagle3":
        raise ValueError(f"{folder}: expected a head of eagle3, got one of {kind}")
    return "eagle3" if read.keys() & {"speculators_model_type", "draft_vocab_size"} else None
