"""Medusa's heads in the layouts of the authors' code.

    theirs                       ours
    i.j.linear.{weight,bias}     heads.i.blocks.j.{weight,bias}
    i.L.weight                   heads.i.output.weight; where there is none, the target's head reads the features

Released heads lie in a file of their own. Merged ones lie inside the model's checkpoint, behind `medusa_head.`. Sizes are
read off the tensors: configurations in the wild count heads wrongly.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ..drafters.parts.medusa_model import MedusaConfig
from ..host.json_files import read_json
from .format import VOCABULARY
from .mapping import TensorMapping
from .target_facts import TargetFacts
from .tensors import check_shapes, read_file, read_tensors

RELEASED = "medusa_lm_head.pt"
FILES = ("medusa_lm_head.safetensors", RELEASED)
INSIDE_MODEL = "medusa_head."
PADDING = 128
"""Rows beyond the target's vocabulary from which on they are no padding: vocabularies are padded to multiples of 64 or 128."""
NAME = re.compile(r"(?:.*\bmedusa_head\.)?(\d+)\.(\d+)\.(linear\.(?:weight|bias)|weight)")


def is_medusa(folder: Path) -> bool:
    """Return whether a folder holds heads in one of these layouts, without reading tensors."""
    config = folder / "config.json"
    if any((folder / name).is_file() for name in FILES):
        return True
    return config.is_file() and "medusa_num_heads" in read_json(config)


def medusa_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the heads of a folder, from a separate file or from inside a model.

    Raises:
        ValueError: if there are none, or a file is damaged or holds more than tensors.
    """
    for name in FILES:
        if (folder / name).is_file():
            return read_file(folder / name)
    if not (inside := read_tensors(folder, INSIDE_MODEL)):
        raise ValueError(
            f"checkpoint: expected {RELEASED} or tensors {INSIDE_MODEL}* in {folder}, got neither"
        )
    return inside


def read_medusa(
    where: Path, tensors: dict[str, Tensor], target: TargetFacts
) -> tuple[MedusaConfig, TensorMapping]:
    """Map heads to our tensor names.

    Args:
        where: they were read from, for messages.
        tensors: all of them.
        target: what they were trained for, as far as is known.

    Returns:
        A configuration and the mapping.

    Raises:
        ValueError: naming a tensor that is missing, unexpected or of an unexpected shape, or what does not fit the
            target.
    """
    names: dict[str, str] = {}
    for source in sorted(tensors):
        if (match := NAME.fullmatch(source)) is None:
            raise ValueError(f"{where}: expected no tensor {source} in a Medusa, got one")
        head, place, kind = match.groups()
        name = f"{int(head)}.{int(place)}.{kind}"
        if name in names:
            raise ValueError(f"{where}: expected one of {names[name]} and {source}, got both")
        names[name] = source
    found = {name: tensors[source] for name, source in names.items()}
    config, shapes = _sizes(where, found)
    check_shapes(where, shapes, found)
    if config.hidden_size != target.hidden_size:
        raise ValueError(
            f"hidden_size: expected the target's {target.hidden_size}, got {config.hidden_size}"
        )
    mapping = TensorMapping(tensors)
    for theirs, ours in _names(config).items():
        source, rows = names[theirs], len(found[theirs])
        if not ours.endswith("output.weight") or rows == target.vocab_size:
            mapping.copy(source, ours)
            continue
        if rows < target.vocab_size:
            raise ValueError(
                f"{source}: expected rows for the target's vocabulary of {target.vocab_size}, got {rows}"
            )
        if rows >= target.vocab_size + PADDING:
            raise ValueError(
                f"{source}: expected the target's {target.vocab_size} rows and fewer than {PADDING} of padding, got {rows}"
            )
        action = f"cut to {target.vocab_size} rows: the others are padding"
        mapping.copy(source, ours, rows=slice(target.vocab_size), action=action)
    return config, mapping


def write_medusa(
    config: MedusaConfig, weights: dict[str, Tensor]
) -> tuple[dict[str, Any], TensorMapping]:
    """Map our weights to the authors' tensor names.

    Returns:
        The content of their `config.json`, and the mapping.

    Raises:
        ValueError: if the layout cannot hold the heads.
    """
    if config.output == "projected":
        raise ValueError(
            "output: expected own or target, which Medusa's layout holds, got projected"
        )
    if VOCABULARY in weights:
        raise ValueError(
            f"{VOCABULARY}: expected none, as Medusa's layout has a row for every token, got one of "
            f"{len(weights[VOCABULARY])} tokens"
        )
    mapping = TensorMapping(weights)
    for theirs, ours in _names(config).items():
        mapping.copy(ours, theirs)
    return {
        "base_model_name_or_path": None,
        "medusa_num_heads": config.heads,
        "medusa_num_layers": config.blocks,
    }, mapping


def _sizes(
    where: Path, found: dict[str, Tensor]
) -> tuple[MedusaConfig, dict[str, tuple[int, ...]]]:
    """Derive the configuration from names and shapes; list the tensors of such heads, with the file's vocabulary."""
    own = [name for name in found if name.count(".") == 2]
    matrices = [name for name in (*own, *found) if name.endswith(".weight")]
    if not matrices:
        raise ValueError(f"{where}: expected a matrix 0.0.linear.weight, got none")
    first = found[matrices[0]]
    if first.ndim != 2 or 0 in first.shape:
        raise ValueError(f"{where}: expected a matrix {matrices[0]}, got shape {list(first.shape)}")
    rows, width = first.shape
    # The output matrix follows the blocks, so its index is their number.
    blocks = max(int(name.split(".")[1]) + (not own) for name in own or found)
    try:
        config = MedusaConfig(
            width,
            heads=1 + max(int(name.split(".")[0]) for name in found),
            blocks=blocks,
            output="own" if own else "target",
        )
    except ValueError as error:
        raise ValueError(f"{where}: expected Medusa heads, got {error}") from error
    kinds = {"linear.weight": (width, width), "linear.bias": (width,), "weight": (rows, width)}
    return config, {name: kinds[name.split(".", 2)[2]] for name in _names(config)}


def _names(config: MedusaConfig) -> dict[str, str]:
    """Map the authors' names to ours."""
    names = {}
    for head in range(config.heads):
        for block in range(config.blocks):
            for kind in ("weight", "bias"):
                names[f"{head}.{block}.linear.{kind}"] = f"heads.{head}.blocks.{block}.{kind}"
        if config.output == "own":
            names[f"{head}.{config.blocks}.weight"] = f"heads.{head}.output.weight"
    return names
