"""Tensor files: read without executing code, and checked by name."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..host.json_files import read_json
from ..host.reasons import reason
from ..host.whole_file import whole_file

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"


def read_tensors(folder: Path, part: str = "") -> dict[str, Tensor]:
    """Read a checkpoint of one file or several shards: safetensors, or torch's format with weights only.

    Args:
        folder: with the files.
        part: of the names of the tensors to read; other shards need not be there.

    Raises:
        ValueError: if there is none, a part of it is missing or damaged, or a file holds more than tensors.
    """
    for name in (SAFETENSORS, PICKLE):
        if (folder / name).is_file():
            return read_file(folder / name, part)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index, part)
    raise ValueError(f"checkpoint: expected {SAFETENSORS} or {PICKLE} in {folder}, got neither")


def _read_shards(index: Path, part: str) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    ):
        raise ValueError(f"{index}: expected a weight_map from tensors to files beside it")
    places = {name: file for name, file in places.items() if part in name}
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        tensors |= read_file(index.parent / file, part)
    check_names(index.parent, places, tensors)
    return tensors


def read_file(path: Path, part: str = "") -> dict[str, Tensor]:
    """Read one file, or its tensors with `part` in their names; raises as `read_tensors`."""
    if not path.is_file():
        raise ValueError(f"checkpoint: expected a file {path}, got none")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, part)
    return {name: tensor for name, tensor in _read_pickle(path).items() if part in name}


def _read_safetensors(path: Path, part: str) -> dict[str, Tensor]:
    _check_complete(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if part in name}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: expected undamaged safetensors, got {reason(error)}") from error


def _check_complete(path: Path) -> None:
    """Raise ValueError that names the first truncated tensor; the library's own error does not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path}: expected a safetensors header, got a file of {size} bytes")
        try:
            header = json.loads(file.read(length))
            ends = sorted(
                (int(entry["data_offsets"][1]), str(name))
                for name, entry in header.items()
                if name != "__metadata__"
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected a safetensors header, got another one") from error
    for end, name in ends:
        if (missing := 8 + length + end - size) > 0:
            raise ValueError(
                f"{path}: expected all of tensor {name}, got a file that ends {missing} bytes before its end"
            )


def _read_pickle(path: Path) -> dict[str, Tensor]:
    found = read_pickle(path)
    if not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise ValueError(f"{path}: expected tensors by name, got something else")
    return {name: tensor.detach() for name, tensor in found.items()}


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a dictionary in torch's format without executing code.

    Raises:
        ValueError: if the file is damaged, holds something else or wants code to be run.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about its pickle format
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's message explains how to execute the file's code, so it is not shown.
        raise ValueError(
            f"{path}: expected tensors alone, got a file that wants code to be run, or a damaged one; it was not run"
        ) from error
    except (EOFError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected an undamaged file of tensors, got {reason(error)}"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected tensors by name, got something else")
    return found


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a file atomically; OSError if it cannot be written."""
    with whole_file(path) as scratch:
        try:
            save_file(tensors, scratch, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(errno.EIO, reason(error)) from error


def write_pickle(path: Path, value: dict[str, Any]) -> None:
    """Write a file in torch's format atomically; OSError if it cannot be written."""
    buffer = io.BytesIO()  # torch hides the reason of a write error
    torch.save(value, buffer)
    with whole_file(path) as scratch:
        scratch.write_bytes(buffer.getbuffer())


def check_names(where: Path, expected: Iterable[str], found: Iterable[str]) -> None:
    """Raise ValueError, naming the first, if tensors are missing or unexpected."""
    expected, found = set(expected), set(found)
    if missing := sorted(expected - found):
        raise ValueError(f"{where}: expected tensor {missing[0]}, got none{_others(missing)}")
    if extra := sorted(found - expected):
        raise ValueError(f"{where}: expected no tensor {extra[0]}, got one{_others(extra)}")


def check_shapes(
    where: Path, expected: Mapping[str, Sequence[int]], found: Mapping[str, Tensor]
) -> None:
    """Raise ValueError, naming the first, if tensors are missing, unexpected or of another shape."""
    check_names(where, expected, found)
    for name, shape in expected.items():
        if (got := list(found[name].shape)) != list(shape):
            raise ValueError(f"{where}: expected tensor {name} of shape {list(shape)}, got {got}")


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
