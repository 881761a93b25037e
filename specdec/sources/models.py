"""Loads models and tokenizers: embedded ones, from the hub, or from a folder."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..model.memory import Needs, enough_memory, gigabytes
from .embedded import DEFAULT_MODEL, EMBEDDED
from .embedded_files import embedded_model_path
from .library import reading_model

MAIN = "main"


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
        name: an embedded model (`smollm2-135m-instruct` or `gemma-3-270m`), a hub id, or a local folder.
        dtype: dtype of the weights.
        device: device of the weights.
        revision: branch, tag or commit of a hub id; None for its main branch. Ignored for folders.
        trust_remote_code: run Python code that comes with a hub id or folder, for models that transformers lacks. Only
            for code that you have read.

    Returns:
        The model in evaluation mode, and the tokenizer.

    Raises:
        MemoryError: if memory runs out.
        ValueError: if there is no such model, its cached files are damaged, it has no tokenizer, its weights do not
            match its config, the device lacks the dtype, or `revision` or `trust_remote_code` is set for an embedded
            model.
    """
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    source = _source(name, revision, trust_remote_code)
    return _weights(name, source, dtype, device, revision, trust_remote_code), tokenizer


def load_tokenizer(
    name: str = DEFAULT_MODEL, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Load a tokenizer without its model; arguments and errors as in `load_model`."""
    source = _source(name, revision, trust_remote_code)
    with reading_model(name):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision or MAIN, trust_remote_code=trust_remote_code
        )
    # Without files, transformers creates a tokenizer of special tokens only.
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
    """Load a model without its tokenizer; arguments and errors as in `load_model`."""
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
        raise ValueError("dtype: expected one that mps supports, got float64")

    def needed() -> str:
        needs = Needs.of(_outline(name, source, revision, trust_remote_code), dtype)
        return f"{gigabytes(needs.weights)} for weights in {dtype} on {device}"

    advice = "load a smaller model, a smaller dtype, or on another device"
    with enough_memory(needed, advice):
        with reading_model(name), enough_memory(needed, advice):
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported by name below
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
    with reading_model(name), torch.device("meta"):
        config = AutoConfig.from_pretrained(
            source, revision=revision or MAIN, trust_remote_code=trust_remote_code
        )
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _source(name: str, revision: str | None, trust_remote_code: bool) -> str:
    """Return the folder or hub id to load from."""
    if name not in EMBEDDED:
        return name
    if revision is not None:
        raise ValueError(f"revision: expected none for the embedded {name}, got {revision!r}")
    if trust_remote_code:
        raise ValueError(f"trust_remote_code: expected False for the embedded {name}, got True")
    return str(embedded_model_path(name))


def _check_weights(name: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Raise ValueError if transformers would initialise weights at random, or drop layers or experts."""
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
    # Weights of unknown modules, such as a second head, are ignored.
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
