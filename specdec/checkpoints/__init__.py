"""Checkpoints of drafters: our format, and the layouts of other projects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..host.lazy import lazily

if TYPE_CHECKING:
    from .convert import Conversion, conversion_table, export_drafter, import_drafter
    from .folders import load_folder, method_in
    from .format import (
        Description,
        load_drafter_checkpoint,
        read_description,
        save_checkpoint,
        save_drafter,
    )
    from .layout import Layout
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
    "load_folder",
    "method_in",
    "read_description",
    "save_checkpoint",
    "save_drafter",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "convert": ["Conversion", "conversion_table", "export_drafter", "import_drafter"],
        "format": [
            "Description",
            "load_drafter_checkpoint",
            "read_description",
            "save_checkpoint",
            "save_drafter",
        ],
        "folders": ["load_folder", "method_in"],
        "layout": ["Layout"],
        "target_facts": ["TargetFacts"],
    },
)
