"""What a run is measured on, and with what."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib import metadata

from bench.gpu.run import Row

PACKAGES = ("torch", "triton", "transformers", "numpy")


def machine(dry: bool) -> Row:
    """Say what is measured on, and with what; nothing on the card is set."""
    if dry:
        return {"device": "interpreter", "card": {}, "versions": versions()}
    names = ("name", "driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    card: dict[str, str] = {}
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        card = dict(zip(names, answer.stdout.splitlines()[0].split(", "), strict=True))
    device = card.pop("name", "no GPU that nvidia-smi knows")
    return {"device": device, "card": card, "versions": versions()}


def versions() -> dict[str, str]:
    """Say what the figures belong to."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
