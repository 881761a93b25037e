"""Conversion between our format and the layouts of other projects, with a dry run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from ..drafters.kangaroo import KangarooConfig
from ..drafters.methods import method_of
from ..drafters.parts.eagle3_model import Eagle3Config
from ..drafters.parts.medusa_model import MedusaConfig
from ..drafters.redrafter import ReDrafterConfig
from ..host.json_files import read_json
from ..host.whole_file import check_new_folder, whole_file
from ..model.target import Target
from .eagle3_config import Kind
from .eagle3_layout import kind_of, read_eagle3, write_eagle3
from .format import CONFIG, read_description, read_weights, save_checkpoint
from .kangaroo_layout import LAYER, read_kangaroo, write_kangaroo
from .layout import Layout
from .mapping import Move
from .medusa_layout import RELEASED, is_medusa, medusa_tensors, read_medusa, write_medusa
from .redrafter_layout import read_redrafter, write_redrafter
from .target_facts import TargetFacts
from .tensors import PICKLE, SAFETENSORS, read_tensors, write_pickle, write_safetensors

EAGLE3_LAYOUTS: dict[Layout, Kind] = {
    Layout.eagle3: "authors",
    Layout.speculators: "speculators",
}


@dataclass(frozen=True, slots=True)
class Conversion:
    """A checked checkpoint and its planned conversion."""

    title: str
    moves: tuple[Move, ...]
    write_into: Callable[[Path], None]

    def write(self, folder: Path) -> None:
        """Write the files.

        Raises:
            ValueError: if the folder is there and holds something, or cannot be written to.
        """
        check_new_folder(folder, "out")
        self.write_into(folder)


def import_drafter(
    source: Path,
    target: Target,
    *,
    exit_layer: int | None = None,
    layers: tuple[int, ...] | None = None,
) -> Conversion:
    """Read a drafter in Apple's, ModelOpt's, Medusa's, Kangaroo's, EAGLE-3's or speculators' layout; its files and tensors tell which.

    Args:
        source: folder with safetensors or torch's own files, one or several.
        target: the model that the drafter was trained for.
        exit_layer: for Kangaroo, how many of the target's layers run before the adapter.
        layers: for EAGLE-3, whose inputs it reads; None for what its configuration says, or else the authors' choice.

    Returns:
        The conversion to our format.

    Raises:
        ValueError: if the layout is not known, a file is damaged or holds more than tensors, a tensor is missing,
            unexpected or of an unexpected shape, or the drafter does not fit the target.
    """
    if (source / CONFIG).is_file() and "format" in read_json(source / CONFIG):
        raise ValueError(f"source: expected the layout of another project, got ours in {source}")
    facts = TargetFacts.of(target)
    medusa = is_medusa(source)
    tensors = medusa_tensors(source) if medusa else read_tensors(source)
    config: ReDrafterConfig | KangarooConfig | MedusaConfig | Eagle3Config
    is_eagle3 = not medusa and kind_of(tensors) is not None
    if layers is not None and not is_eagle3:
        raise ValueError(
            f"layers: expected none for another drafter than EAGLE-3, got {list(layers)}"
        )
    if exit_layer is not None and is_eagle3:
        raise ValueError(f"exit_layer: expected none for an EAGLE-3, got {exit_layer}")
    if is_eagle3:
        theirs = read_json(source / CONFIG)
        config, mapping = read_eagle3(
            source, tensors, theirs, facts, embedding=target.embedding, layers=layers
        )
        config.layers_of(facts.layers)  # raises if a layer does not exist
    elif not medusa and any(name.startswith(LAYER) for name in tensors):
        authors = read_json(source / CONFIG)
        config, mapping = read_kangaroo(source, tensors, authors, facts, exit_layer=exit_layer)
    elif exit_layer is not None:
        method = "Medusa" if medusa else "ReDrafter"
        raise ValueError(f"exit_layer: expected none for a {method}, got {exit_layer}")
    elif medusa:
        config, mapping = read_medusa(source, tensors, facts)
    else:
        config, mapping = read_redrafter(source, tensors, facts)
    write = partial(save_checkpoint, config=config, weights=mapping.tensors, target=facts)
    return Conversion(f"{method_of(config)}, to own", tuple(mapping.moves), write)


def export_drafter(source: Path, layout: Layout) -> Conversion:
    """Read a drafter in our format for one of the other layouts.

    Args:
        source: folder in our format.
        layout: `apple` for a ReDrafter, `medusa` for a Medusa, `kangaroo` for a Kangaroo, `eagle3` or `speculators` for an EAGLE-3.

    Returns:
        The conversion.

    Raises:
        ValueError: if the checkpoint is damaged, or the layout cannot hold it.
    """
    description = read_description(source)
    weights = read_weights(source, description)
    config = description.drafter
    if isinstance(config, ReDrafterConfig) and layout == Layout.apple:
        authors, mapping = write_redrafter(config, weights)
        write = partial(_write_safetensors, tensors=mapping.tensors, config=authors)
    elif isinstance(config, KangarooConfig) and layout == Layout.kangaroo:
        authors, mapping = write_kangaroo(config, weights, description.target)
        write = partial(_write_pickle, tensors=mapping.tensors, config=authors)
    elif isinstance(config, MedusaConfig) and layout == Layout.medusa:
        authors, mapping = write_medusa(config, weights)
        write = partial(_write_pickle, tensors=mapping.tensors, config=authors, name=RELEASED)
    elif isinstance(config, Eagle3Config) and layout in EAGLE3_LAYOUTS:
        authors, mapping = write_eagle3(config, weights, description.target, EAGLE3_LAYOUTS[layout])
        pickled = layout == Layout.eagle3
        write = partial(
            _write_pickle if pickled else _write_safetensors,
            tensors=mapping.tensors,
            config=authors,
        )
    else:
        raise ValueError(f"to: expected a layout for {description.method}, got {layout}")
    return Conversion(f"{description.method}, to {layout}", tuple(mapping.moves), write)


def conversion_table(conversion: Conversion) -> Table:
    """Format the mapping of every tensor as text."""
    table = Table(title=conversion.title, title_justify="left")
    for column in ("tensor", "shape", "becomes", "shape", "how"):
        table.add_column(column, overflow="fold")
    for move in conversion.moves:
        table.add_row(
            move.source,
            _shape(move.source_shape),
            move.name or "-",
            "-" if move.shape is None else _shape(move.shape),
            move.action,
        )
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _write_safetensors(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / SAFETENSORS, tensors)
    _write_config(folder, config)


def _write_pickle(
    folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], name: str = PICKLE
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_pickle(folder / name, tensors)
    _write_config(folder, config)


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    with whole_file(folder / CONFIG) as scratch:
        scratch.write_text(json.dumps(config, indent=2) + "\n")
