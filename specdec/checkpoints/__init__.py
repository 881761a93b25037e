"""Checkpoints of drafters: our own format, and the layouts of other projects, read and written."""

from __future__ import annotations

from .convert import Conversion, Layout, conversion_table, export_drafter, import_drafter
from .format import (
    Description,
    load_drafter_checkpoint,
    read_description,
    save_checkpoint,
    save_drafter,
)
from .target_facts import TargetFacts

__all__ = [
    "Conversion",
    "Description",
    "Layout",
    "TargetFacts",
    "conversion_table",
    "export_drafter",
    "import_drafter",
    "load_drafter_checkpoint",
    "read_description",
    "save_checkpoint",
    "save_drafter",
]
