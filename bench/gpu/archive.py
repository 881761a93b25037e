"""Pack the repository and the default model in parts, for a GPU machine without a network.

    python -m bench.gpu.archive FOLDER [--limit 64]

Each transfer takes the tree and one part. Prints all sizes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

from bench import ROOT
from bench.gpu.model import pack

MIB = 1 << 20
MAX_PARTS = 3
TREE_LIMIT = 32_000_000
SPARE = MIB // 2
"""For what a transfer adds to files."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="Write the tree and the parts to this folder.")
    parser.add_argument("--limit", type=int, default=64, help="MiB per transfer.")
    parser.add_argument("--no-model", action="store_true", help="Pack only the tree.")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    tree = pack_tree(options.folder / "tree.tar")
    print(f"tree: {tree / 1e6:.1f} MB, limit {TREE_LIMIT / 1e6:.0f} MB")
    if tree > TREE_LIMIT:
        sys.exit(f"tree: expected at most {TREE_LIMIT} bytes, got {tree}")
    if options.no_model:
        return
    from specdec.sources.embedded_files import embedded_model_path
    from specdec.sources.models import DEFAULT_MODEL

    content = pack(embedded_model_path(DEFAULT_MODEL))
    parts = split(content, DEFAULT_MODEL, options.limit * MIB - tree - SPARE)
    for at, part in enumerate(parts, 1):
        (options.folder / f"model.{at}").write_bytes(part)
        both = (tree + len(part)) / MIB
        print(f"model.{at} of {len(parts)}: {len(part) / 1e6:.1f} MB; with the tree {both:.1f} MiB")


def pack_tree(file: Path) -> int:
    """Write the committed tree as a tar file, and return its size."""
    subprocess.run(["git", "archive", "--output", str(file), "HEAD"], cwd=ROOT, check=True)
    return file.stat().st_size


def split(content: bytes, name: str, most: int) -> list[bytes]:
    """Split into parts of up to `most` bytes, each saying what it is.

    Raises:
        ValueError: if it would take more than three.
    """
    count = max(1, -(-len(content) // max(1, most - 1024)))
    if count > MAX_PARTS:
        raise ValueError(f"limit: expected room for a third of {len(content)} bytes, got {most}")
    size = -(-len(content) // count)
    whole = hashlib.sha256(content).hexdigest()
    parts = []
    for at in range(count):
        piece = content[at * size : (at + 1) * size]
        head = {"model": name, "part": at + 1, "of": count, "whole": whole}
        head["sha256"] = hashlib.sha256(piece).hexdigest()
        parts.append(json.dumps(head).encode() + b"\n" + piece)
    return parts


if __name__ == "__main__":
    main()
