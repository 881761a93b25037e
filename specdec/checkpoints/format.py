"""Our checkpoint format: a folder with `config.json` and `model.safetensors`.

`config.json` says which method it is, which target it was made for, the fields of the method's configuration and a
SHA-256 per tensor; `model.safetensors` holds the module's own state dict and, where there is one, `draft_vocabulary`.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..drafters.methods import METHODS, drafter_file, method_of
from ..drafters.parts.calibration import calibration_in
from ..drafters.parts.redrafter_model import check_draft_vocabulary
from ..drafters.protocol import Drafter
from ..host.json_files import read_json
from ..host.whole_file import whole_file
from ..model.target import Target
from .target_facts import TargetFacts
from .tensors import (
    SAFETENSORS,
    check_names,
    check_shapes,
    read_file,
    tensor_digest,
    write_safetensors,
)

FORMAT = 1
CONFIG = "config.json"
VOCABULARY = "draft_vocabulary"
DrafterConfig = Any  # a dataclass of one of the methods


@dataclass(frozen=True, slots=True)
class Description:
    """Description of a checkpoint, without its weights."""

    method: str
    """One of `METHODS`."""
    target: TargetFacts
    """The target it was trained for."""
    drafter: DrafterConfig
    """Shape and default draft settings."""
    sha256: dict[str, str]
    """SHA-256 per tensor, over dtype, shape and bytes."""


def save_drafter(folder: Path, drafter: Any, *, dtype: torch.dtype | None = None) -> None:
    """Save a drafter.

    Args:
        folder: made if it is not there; a checkpoint in it is replaced.
        drafter: its weights, its shape and how it drafts.
        dtype: that weights are rounded to; None to keep them as they are.

    Raises:
        ValueError: if the target is loaded in float16, in which it cannot be told from others of its shape.
    """
    weights = drafter_file(method_of(drafter.config)).weights_of(drafter)
    if dtype is not None:
        weights = {
            name: weight.to(dtype) if weight.is_floating_point() else weight
            for name, weight in weights.items()
        }
    save_checkpoint(folder, drafter.config, weights, TargetFacts.of(drafter.target))


def save_checkpoint(
    folder: Path, config: DrafterConfig, weights: dict[str, Tensor], target: TargetFacts
) -> None:
    """Save weights under their names in our modules.

    Args:
        folder: made if it is not there; a checkpoint in it is replaced.
        config: the drafter's.
        weights: the module's state dict, with `draft_vocabulary` where there is one; dtypes are kept.
        target: what the drafter was made for.

    Raises:
        ValueError: if a tensor is missing, unexpected or of another shape than the configuration's, or the target
            has no fingerprint.
    """
    if target.fingerprint is None:
        raise ValueError(
            "target: expected float32, bfloat16 or float64, in which a model can be told from others, got float16"
        )
    _new_module(folder, config, weights, target.vocab_size)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    description = {
        "format": FORMAT,
        "method": method_of(config),
        "target": asdict(target),
        "drafter": asdict(config),
        "sha256": {name: tensor_digest(weight) for name, weight in sorted(weights.items())},
    }
    folder.mkdir(parents=True, exist_ok=True)
    # Weights first: after an interruption between the two files, the digests reveal the incomplete checkpoint.
    write_safetensors(folder / SAFETENSORS, weights)
    with whole_file(folder / CONFIG) as scratch:
        scratch.write_text(json.dumps(description, indent=1) + "\n")


def read_description(folder: Path) -> Description:
    """Read the description of a checkpoint.

    Raises:
        ValueError: if the folder holds no checkpoint in our format, or one that is damaged.
    """
    path = folder / CONFIG
    read = read_json(path)
    if "method" not in read or "format" not in read:
        raise ValueError(
            f"{path}: expected a drafter in specdec's format, got something else; "
            "`specdec convert` reads the layouts of other projects"
        )
    if read["format"] != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {read['format']!r}")
    trained = [name for name, method in METHODS.items() if method.trained]
    if read["method"] not in trained:
        raise ValueError(f"{path}: expected one of {', '.join(trained)}, got {read['method']!r}")
    try:
        return Description(
            read["method"],
            TargetFacts(**read["target"]),
            drafter_file(read["method"]).CONFIG(
                **{METHODS[read["method"]].renamed.get(n, n): v for n, v in read["drafter"].items()}
            ),
            dict(read["sha256"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a complete description, got {error}") from error


def read_weights(folder: Path, description: Description) -> dict[str, Tensor]:
    """Read a checkpoint's tensors and verify their digests.

    Raises:
        ValueError: naming the tensor that is missing, unexpected, cut short, altered or of another shape.
    """
    path = folder / SAFETENSORS
    weights = read_file(path)
    check_names(path, description.sha256, weights)
    for name, expected in description.sha256.items():
        if (got := tensor_digest(weights[name])) != expected:
            raise ValueError(
                f"{path}: expected tensor {name} with SHA-256 {expected[:16]}, got {got[:16]}: it was altered"
            )
    _new_module(path, description.drafter, weights, description.target.vocab_size)
    return weights


def load_drafter_checkpoint(folder: Path, target: Target, **settings: Any) -> Drafter:
    """Load a drafter from a checkpoint in our format.

    Args:
        folder: with `config.json` and `model.safetensors`.
        target: the model that it was made for.
        settings: how to draft, where it shall differ from what was saved: the method's `settings` in `METHODS`.

    Returns:
        The drafter, in the target's dtype and on its device.

    Raises:
        ValueError: if the folder holds no checkpoint, or a damaged one, of which a tensor is named, or a damaged calibration; if the target is
            another one than the checkpoint's; if a setting is unknown or out of range.
    """
    description = read_description(folder)
    settings = known_settings(description.method, settings)
    config = replace(description.drafter, **settings)
    description.target.check(target)
    weights = read_weights(folder, description)
    return joined(folder, target, description.drafter, weights, config)


def joined(
    folder: Path,
    target: Target,
    shape: DrafterConfig,
    weights: dict[str, Tensor],
    config: DrafterConfig,
) -> Drafter:
    """Create a drafter from weights.

    Args:
        folder: where they and perhaps a calibration of their own lie.
        target: the model that they were made for.
        shape: the configuration that they were saved with.
        weights: under their names in our modules.
        config: the same, or with other settings.

    Raises:
        ValueError: if weights or a calibration do not fit.
    """
    method = method_of(shape)
    module = _new_module(folder, shape, weights, target.config.vocab_size)
    own = module.state_dict()
    module.load_state_dict({name: weights[name] for name in own}, assign=True)
    drafter: Drafter = drafter_file(method).join(target, config, module, weights.get(VOCABULARY))
    if (calibration := calibration_in(folder, method)) is not None:
        drafter.calibration = calibration
    return drafter


def known_settings(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Rename settings to their current names.

    Raises:
        ValueError: if one is not the method's.
    """
    known, renamed = METHODS[method].settings, METHODS[method].renamed
    for old in settings.keys() & renamed.keys():
        warnings.warn(
            f"{old}: expected its new name, {renamed[old]}; the next release drops the old one",
            DeprecationWarning,
            stacklevel=4,
        )
    named = {renamed.get(name, name): value for name, value in settings.items()}
    for name in named:
        if name not in known:
            raise ValueError(f"{name}: expected one of the settings {', '.join(known)}")
    return named


def _new_module(
    where: Path, config: DrafterConfig, weights: dict[str, Tensor], vocabulary_size: int
) -> Any:
    """Create the module on the meta device; raise ValueError unless the weights match its tensors."""
    vocabulary = weights.get(VOCABULARY)
    if vocabulary is not None and vocabulary.dtype != torch.int64:
        raise ValueError(f"{where}: expected {VOCABULARY} in int64, got {vocabulary.dtype}")
    check_draft_vocabulary(vocabulary, vocabulary_size)
    for name, weight in weights.items():
        if name != VOCABULARY and not weight.is_floating_point():
            raise ValueError(f"{where}: expected floating point tensor {name}, got {weight.dtype}")
    with torch.device("meta"):
        module = drafter_file(method_of(config)).new_module(config, vocabulary_size, vocabulary)
    expected = {name: weight.shape for name, weight in module.state_dict().items()}
    if vocabulary is not None:
        expected[VOCABULARY] = vocabulary.shape
    check_shapes(where, expected, weights)
    return module
