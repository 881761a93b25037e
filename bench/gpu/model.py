"""The default model for a machine without a network: parts are stored, checked, joined and unpacked.

    python -m bench.gpu.model PART …        # only store parts

`python -m bench.gpu.archive` makes the parts. A part is a line that says what it is and the bytes; together they are a zip file of the
model's folder, its weights in blocks of 32 as they were quantised: whole numbers, a scale, perhaps an offset.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STORE = Path(tempfile.gettempdir()) / "specdec-gpu-model"
WEIGHTS = "model.safetensors"
INDEX = "weights.json"
BLOCK = 32


def store(paths: Iterable[Path], folder: Path = STORE) -> Path:
    """Put parts aside, each checked.

    Returns:
        Where to ask for the model: `folder`, or a path that is a model's folder itself.

    Raises:
        ValueError: if a part is damaged, or all there is are not all parts of one model; says which are missing.
    """
    for path in paths:
        if path.is_dir():
            return path
        head, _ = read_part(path)
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{path.name}.new"
        shutil.copyfile(path, new)
        new.replace(folder / f"{head['model']}.{head['part']}of{head['of']}")
        shutil.rmtree(unpacked(folder), ignore_errors=True)  # of other parts
    if not (folder / "config.json").exists() and not unpacked(folder).exists():
        complete(folder)
    return folder


def read_part(path: Path) -> tuple[dict[str, Any], bytes]:
    """Read a part and check it."""
    line, _, content = path.read_bytes().partition(b"\n")
    try:
        head = json.loads(line)
        right = hashlib.sha256(content).hexdigest() == head["sha256"]
    except (ValueError, KeyError, TypeError):
        right = False
    if not right:
        raise ValueError(f"model: expected an undamaged part from bench.gpu.archive, got {path}")
    return head, content


def complete(folder: Path) -> list[Path]:
    """Return all parts of the model in order.

    Raises:
        ValueError: if there are none, or some are missing.
    """
    parts = sorted(folder.glob("*of*"), key=lambda path: path.stat().st_mtime)
    if not parts:
        raise ValueError("model: none was given")
    model, _, counted = parts[-1].name.partition(".")
    of = int(counted.partition("of")[2])
    wanted = [folder / f"{model}.{part}of{of}" for part in range(1, of + 1)]
    if missing := [str(at) for at, path in enumerate(wanted, 1) if not path.exists()]:
        raise ValueError(f"model: part {', '.join(missing)} of {of} is missing")
    return wanted


def unpacked(folder: Path) -> Path:
    """Say where the model's folder is, or will be."""
    return folder / "model"


def model_folder(folder: Path) -> Path:
    """Join, check and unpack what `store` has put aside, once; return a folder as `specdec.load_target` takes it.

    Raises:
        ValueError: if parts are missing or do not fit together.
    """
    if (folder / "config.json").exists():
        return folder
    final = unpacked(folder)
    if final.exists():
        return final
    pairs = [read_part(path) for path in complete(folder)]
    content = b"".join(part for _, part in pairs)
    if hashlib.sha256(content).hexdigest() != pairs[0][0]["whole"]:
        raise ValueError("model: expected parts of one model, got parts that do not fit together")
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
    unpack(content, scratch)
    try:
        scratch.rename(final)
    except OSError:  # another process was faster
        shutil.rmtree(scratch)
    return final


def pack(folder: Path) -> bytes:
    """Make a zip file of a model's folder."""
    from safetensors import safe_open

    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        safe_open(folder / WEIGHTS, "np") as weights,
    ):
        for path in sorted(folder.iterdir()):
            if path.name not in (WEIGHTS, "manifest.json"):
                archive.write(path, path.name)
        shapes = {}
        for name in weights.keys():  # noqa: SIM118 - no dictionary
            values = weights.get_tensor(name)
            shapes[name] = list(values.shape)
            for part, array in encode(name, values).items():
                archive.writestr(f"{name}.{part}", array.tobytes())
        archive.writestr(INDEX, json.dumps({"metadata": weights.metadata(), "shapes": shapes}))
    return packed.getvalue()


def unpack(content: bytes, folder: Path) -> None:
    """Write what `pack` has read: the weights in float32, to the bit."""
    import numpy as np
    from safetensors.numpy import save_file

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        index = json.loads(archive.read(INDEX))
        names = set(archive.namelist())
        weights = {}
        for name, shape in index["shapes"].items():
            parts = {
                part: np.frombuffer(archive.read(f"{name}.{part}"), dtype)
                for part, dtype in DTYPES.items()
                if f"{name}.{part}" in names
            }
            weights[name] = decode(parts).reshape(shape)
        packed = {f"{name}.{part}" for name in weights for part in DTYPES}
        for name in names - packed - {INDEX}:
            (folder / name).write_bytes(archive.read(name))
    save_file(weights, folder / WEIGHTS, metadata=index["metadata"])


# What a tensor is packed into: numbers of 4 bits with scales and offsets, of 8 bits with scales, or as it is.
DTYPES = {
    "nibbles": "u1",
    "bytes": "i1",
    "scales": "<f2",
    "offsets": "<f2",
    "floats": "<f4",
}


def encode(name: str, values: Any) -> dict[str, Any]:
    """Find the fewest bits that give the same float32 numbers back."""
    for way in (_nibbles, _bytes):
        if values.size % BLOCK == 0 and (parts := way(values.reshape(-1, BLOCK))) is not None:
            return parts
    return {"floats": values.astype("<f4")}


def decode(parts: dict[str, Any]) -> Any:
    """Give the numbers back."""
    import numpy as np

    if "floats" in parts:
        return parts["floats"]
    if "bytes" in parts:
        return _multiplied(parts["bytes"].reshape(-1, BLOCK), parts["scales"])
    pairs = parts["nibbles"].reshape(-1, BLOCK // 2)
    numbers = np.concatenate([pairs & 15, pairs >> 4], 1)
    return _multiplied(numbers, parts["scales"]) + parts["offsets"].astype("f4")[:, None]


def _multiplied(numbers: Any, scales: Any) -> Any:
    return numbers.astype("f4") * scales.astype("f4")[:, None]


def _nibbles(blocks: Any) -> dict[str, Any] | None:
    """Numbers from 0 to 15, scale and offset per block; a block's least number is 0, its largest 15."""
    import numpy as np

    least, most = blocks.min(1), blocks.max(1)
    offsets, scales = least.astype("<f2"), ((most - least) / 15).astype("<f2")
    steps = np.where(scales == 0, 1, scales).astype("f4")[:, None]
    numbers = np.rint((blocks - least[:, None]) / steps).clip(0, 15).astype("u1")
    half = BLOCK // 2
    nibbles = numbers[:, :half] | numbers[:, half:] << 4
    return _if_exact(blocks, {"nibbles": nibbles, "scales": scales, "offsets": offsets})


def _bytes(blocks: Any) -> dict[str, Any] | None:
    """Numbers from -127 to 127 and a scale per block, whose largest number is one of these."""
    import numpy as np

    scales = (np.abs(blocks).max(1) / 127).astype("<f2")
    steps = np.where(scales == 0, 1, scales).astype("f4")[:, None]
    numbers = np.rint(blocks / steps).clip(-127, 127).astype("i1")
    return _if_exact(blocks, {"bytes": numbers, "scales": scales})


def _if_exact(blocks: Any, parts: dict[str, Any]) -> dict[str, Any] | None:
    import numpy as np

    return parts if np.array_equal(decode(parts).reshape(blocks.shape), blocks) else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", type=Path, nargs="*", metavar="PART", help=f"Stored in {STORE}.")
    try:
        print(f"model: {store(parser.parse_args().parts)}")
    except ValueError as error:
        print(error)
        sys.exit(os.EX_DATAERR if "damaged" in str(error) else 0)
