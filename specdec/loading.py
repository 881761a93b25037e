"""From a name or a model to a target that is checked and ready."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from .certificate import certify, certify_exact, own_logits
from .models import DEFAULT_MODEL, load_model
from .target import Target


def load_target(
    model: str | PreTrainedModel = DEFAULT_MODEL,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    exact: bool = False,
    pack: bool = True,
) -> Target:
    """Load a model and certify that trees can be verified with it.

    Args:
        model: the embedded default's name, a hub id, a local folder, or a model in evaluation mode, which stays
            usable as it is.
        dtype: of the weights, for a model given by name.
        device: for a model given by name.
        exact: make every logit independent of what is verified beside it, to the bit, at some cost in time and
            four times the cache in bf16; refused where this machine's arithmetic does not allow it.
        pack: pack the linear layers of a CPU model; faster, and as much memory again for them.

    Returns:
        The target, with its tokenizer where a name was given.

    Raises:
        ValueError: if the model is unknown, damaged or not supported, or `exact` is not possible here.
    """
    tokenizer = None
    if isinstance(model, str):
        model, tokenizer = load_model(model, dtype=dtype, device=device)
    target = Target(model, tokenizer, exact=exact)
    own = own_logits(model)
    if pack:
        target.prepare()
    certify(target, own)
    if exact:
        certify_exact(target)
    return target
