"""`load_target`: load a model, check it and prepare it for verification."""

from __future__ import annotations

import os
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .host.locks import lock_of
from .model.certificate import certify, certify_exact, own_logits
from .model.cpu_linear import prepack_again, undo
from .model.independence import certify_independence, refuse_known
from .model.lean_layers import LeanLayers, lean_layers
from .model.memory import Needs, enough_memory, gigabytes
from .model.model_state import ModelState, check_mode
from .model.target import Target
from .sources.embedded import DEFAULT_MODEL
from .sources.models import load_model
from .sources.releases import warn_of_newer_release

Layers = Literal["auto", "library"]


def load_target(
    model: str | os.PathLike[str] | PreTrainedModel = DEFAULT_MODEL,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    exact: bool = False,
    prepack: bool | None = None,
    layers: Layers = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    pack: bool | None = None,
) -> Target:
    """Load a model as a target, and check that it computes the same logits for trees as for plain text.

    Args:
        model: an embedded model's name, a hub id, a local folder, or a model in evaluation mode, which is not
            modified unless `prepack` is true.
        dtype: of the weights; for a model given by name.
        device: for a model given by name.
        exact: make every logit bit-identical whatever else is in the pass. Slower, and four times the KV cache in
            bf16. Raises ValueError if this machine's arithmetic does not allow it.
        prepack: prepack the linear layers of a CPU model: faster, but their weights take twice the memory. Changes
            the model in place, except for layers that run in few operators. None prepacks models given by name only.
        layers: "auto" runs known layer types in few operators on a CPU if their results agree with transformers';
            "library" always runs transformers' layers.
        revision: branch, tag or commit of a hub id; None for its main branch.
        trust_remote_code: run Python code that comes with a hub id or folder, for models that transformers lacks.
        pack: deprecated name of `prepack`.

    Returns:
        The target; it has a tokenizer if the model was given by name.

    Raises:
        MemoryError: if memory runs out.
        ValueError: if the model is unknown, damaged or not supported, or `exact` is not possible here.
    """
    if layers not in get_args(Layers):
        raise ValueError(f"layers: expected 'auto' or 'library', got {layers!r}")
    warn_of_newer_release()
    if pack is not None:
        warnings.warn(
            "pack: expected the argument prepack, got its old name, which the next release drops",
            DeprecationWarning,
            stacklevel=2,
        )
        prepack = pack
    tokenizer = None
    if isinstance(model, str | os.PathLike):
        model, tokenizer = load_model(
            os.fspath(model),
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        prepack = prepack is not False
    refuse_known(model)
    try:
        target = Target(model, tokenizer, exact=exact)
        own = own_logits(model)
        with enough_memory(
            lambda: _needed(target), "load it with prepack=False or in a smaller dtype"
        ):
            _make_ready(target, own, bool(prepack), _why_library(target, layers))
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error)
        if not isinstance(error, NotImplementedError):
            # Layers with another call signature fail with errors of their own.
            failure = f"{type(error).__name__}: {error}".splitlines()[0]
            reason = f"expected layers that can be run one by one, got a failure ({failure})"
        raise ValueError(f"model: {type(model).__name__} is not supported: {reason}") from error
    return target


def _make_ready(target: Target, own: list[Tensor], prepack: bool, why_library: str | None) -> None:
    """Certify a target with lean layers; if that fails, with transformers' layers."""
    if why_library is None:
        lean_layers(target, prepack=prepack)
    else:
        target.lean = LeanLayers(len(target.parts.layers), reason=why_library)
    if prepack:
        target.prepare()
    try:
        certify(target, own)
        certify_independence(target)
        if target.exact:
            certify_exact(target)
    except ValueError as reason:
        if why_library is not None:
            raise
        _make_ready(target, own, prepack, str(reason))


def _why_library(target: Target, layers: Layers) -> str | None:
    if layers == "library":
        return "asked for"
    return None if target.device.type == "cpu" else f"they lie on {target.device.type}"


def _needed(target: Target) -> str:
    needs = Needs.of(target.model, target.dtype)
    return f"{gigabytes(needs.prepacked)} for packed copies, beside {gigabytes(needs.weights)} of weights"


def follow_changes(target: Target) -> None:
    """Update a target after changes to its model; called before every text.

    After a change of weights, adapters or threads, layers are packed again and cached keys are discarded.

    Raises:
        ValueError: if the model is in training mode, was moved to another dtype or device or got other modules, or
            autocast is on; with `exact`, if batched and single passes no longer give the same bits.
    """
    with lock_of(target.model):
        check_mode(target.model)
        now = ModelState.of(target.model)
        copied = target.lean is not None and target.lean.stale
        if now == target.state and not copied:
            return
        target.state.check(now, target.model)
        if now.weights != target.state.weights:
            prepack_again(target.model)
        if target.lean is not None and target.lean.takes_changes:
            with enough_memory(lambda: _needed(target), "load it again with prepack=False"):
                lean_layers(target, prepack=target.lean.prepacks)
            for at, layer in enumerate(target.parts.layers):
                if target.lean.runs_prepacked(at):
                    undo(layer)
            if target.lean.prepacks:
                target.prepare()  # the layers that run as the library's now
        if target.exact:
            certify_exact(target)
        # Last, so that a refused change is refused again at the next call.
        target.state, target.changes = now, target.changes + 1
