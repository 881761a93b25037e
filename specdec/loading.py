"""From a name or a model to a target that is checked and ready."""

from __future__ import annotations

import os

import torch
from transformers import PreTrainedModel

from .certificate import certify, certify_exact, own_logits
from .embedded import DEFAULT_MODEL
from .models import load_model
from .target import Target


def load_target(
    model: str | os.PathLike[str] | PreTrainedModel = DEFAULT_MODEL,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    exact: bool = False,
    pack: bool | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Target:
    """Load a model and certify that trees can be verified with it.

    Args:
        model: an embedded model's name, a hub id, a local folder, or a model in evaluation mode, which stays
            as it is unless `pack` is true.
        dtype: of the weights, for a model given by name.
        device: for a model given by name.
        exact: make every logit independent of what is verified beside it, to the bit, at some cost in time and
            four times the cache in bf16; refused where this machine's arithmetic does not allow it.
        pack: pack the linear layers of a CPU model, in place; faster, and as much memory again for them. A model
            packed once must not be trained, changed or moved afterwards. None packs models given by name only.
        revision: branch, tag or commit of a hub id; None for its main branch.
        trust_remote_code: run the Python code that a hub id or a folder brings along, for a model that is none of
            the library's own.

    Returns:
        The target, with its tokenizer where a name was given.

    Raises:
        ValueError: if the model is unknown, damaged or not supported, or `exact` is not possible here.
    """
    tokenizer = None
    if isinstance(model, str | os.PathLike):
        model, tokenizer = load_model(
            os.fspath(model),
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        pack = pack is not False
    try:
        target = Target(model, tokenizer, exact=exact)
        own = own_logits(model)
        if pack:
            target.prepare()
        certify(target, own)
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        # Layers that want something else than ours fail in their own ways.
        own_words = isinstance(error, NotImplementedError)
        reason = str(error) if own_words else f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"model: {type(model).__name__} is not supported: {reason}") from error
    if exact:
        certify_exact(target)
    return target
