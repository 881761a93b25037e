"""ReDrafter in Apple's layout, in the spellings that TensorRT-LLM reads, and inside a model as ModelOpt writes it.

    theirs                              ours
    input_proj, where exit_dim != 2E    step.context_in (left columns, bias), step.state_in (right columns)
    lm_head.0.linear, otherwise         the same
    lm_head.{i}.linear                  step.blocks, those that are left
    lm_head.{n}.weight                  output.weight
    rnn_w, rnn_u                        step.recurrent_input, step.recurrent_state

Sizes are read off the tensors: configurations in the wild count residual blocks wrongly.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ..drafters.parts.redrafter_model import AUTHORS_TOP, ReDrafterConfig
from .format import VOCABULARY
from .mapping import TensorMapping
from .target_facts import TargetFacts
from .tensors import check_shapes

INSIDE_MODEL = "drafter."
IGNORED = {"emb_norm.weight": "no forward pass uses it"}
SPELLINGS = (
    (re.compile(r"input_projs?\.(weight|bias)"), r"input_proj.\1"),
    (re.compile(r"(?:lm_heads?|0)\.(\d+)\.linear\.(weight|bias)"), r"lm_head.\1.linear.\2"),
    (re.compile(r"(?:lm_heads?|0)\.(\d+)\.weight"), r"lm_head.\1.weight"),
    (re.compile(r"(rnn_w\.weight|rnn_u\.weight|rnn_u\.bias)"), r"\1"),
)


def read_redrafter(
    where: Path, tensors: dict[str, Tensor], target: TargetFacts
) -> tuple[ReDrafterConfig, TensorMapping]:
    """Map a checkpoint to our names.

    Args:
        where: it was read from, for messages.
        tensors: all of it, perhaps those of a whole model around the drafter.
        target: what it was trained for.

    Returns:
        A configuration that drafts as the authors' code does, and the mapping.

    Raises:
        ValueError: naming a tensor that is missing, unexpected or of an unexpected shape, or what does not fit the
            target.
    """
    names = _authors_names(where, tensors)
    found = {name: tensors[source] for name, source in names.items()}
    mapping = TensorMapping(tensors)
    config = _config(where, found)
    check_shapes(where, _shapes(config, found), found)
    if config.hidden_size != target.hidden_size:
        raise ValueError(
            f"hidden_size: expected the target's {target.hidden_size}, got {config.hidden_size}"
        )
    head = f"lm_head.{config.residual_blocks}.weight"
    rows, vocabulary = len(found[head]), target.vocab_size
    if rows < vocabulary:
        raise ValueError(
            f"{names[head]}: expected rows for the target's vocabulary of {vocabulary}, got {rows}"
        )

    if config.rnn:
        mapping.copy(names["rnn_w.weight"], "step.recurrent_input.weight")
        mapping.copy(names["rnn_u.weight"], "step.recurrent_state.weight")
        mapping.copy(names["rnn_u.bias"], "step.recurrent_state.bias")
    layers = _layers(config)
    width = config.hidden_size
    for first in layers[:1]:
        weight, bias = names[f"{first}.weight"], names[f"{first}.bias"]
        left, right = slice(None, width), slice(width, None)
        mapping.copy(weight, "step.context_in.weight", columns=left, action="left columns")
        mapping.copy(weight, "step.state_in.weight", columns=right, action="right columns")
        mapping.copy(bias, "step.context_in.bias")
    for i, layer in enumerate(layers[1:]):
        for kind in ("weight", "bias"):
            mapping.copy(names[f"{layer}.{kind}"], f"step.blocks.{i}.{kind}")
    cut = f"cut to {vocabulary} rows: the others are padding" if rows > vocabulary else "copied"
    mapping.copy(names[head], "output.weight", rows=slice(vocabulary), action=cut)
    for source in _of_drafter(tensors):
        if (why := IGNORED.get(source.removeprefix(INSIDE_MODEL))) is not None:
            mapping.leave_out(source, why)
    return config, mapping


def write_redrafter(
    config: ReDrafterConfig, weights: dict[str, Tensor]
) -> tuple[dict[str, Any], TensorMapping]:
    """Map our weights to Apple's names.

    Returns:
        The content of their `config.json`, and the mapping.

    Raises:
        ValueError: if the layout cannot hold the drafter: one with the target's head, or with a draft vocabulary.
    """
    if config.tied_head:
        raise ValueError(
            "tied_head: expected a drafter with a head of its own, which Apple's layout holds, got one with the target's"
        )
    if VOCABULARY in weights:
        raise ValueError(
            f"{VOCABULARY}: expected none, as Apple's layout has a head for every token, got one of "
            f"{len(weights[VOCABULARY])} tokens"
        )
    mapping = TensorMapping(weights)
    layers = _layers(config)
    for first in layers[:1]:
        mapping.join("step.context_in.weight", "step.state_in.weight", f"{first}.weight")
        mapping.copy("step.context_in.bias", f"{first}.bias")
    for i, layer in enumerate(layers[1:]):
        for kind in ("weight", "bias"):
            mapping.copy(f"step.blocks.{i}.{kind}", f"{layer}.{kind}")
    mapping.copy("output.weight", f"lm_head.{config.residual_blocks}.weight")
    if config.rnn:
        mapping.copy("step.recurrent_input.weight", "rnn_w.weight")
        mapping.copy("step.recurrent_state.weight", "rnn_u.weight")
        mapping.copy("step.recurrent_state.bias", "rnn_u.bias")
    return {
        "architectures": ["Drafter"],
        "exit_dim": config.exit_dim,
        "hidden_size": config.hidden_size,
        "model_type": "recurrent_drafting_drafter",
        "num_draft_layers": config.residual_blocks,
        "num_lookback_tokens": -1,
        "rnn": config.rnn,
        "torch_dtype": str(weights["output.weight"].dtype).removeprefix("torch."),
        "vocab_size": len(weights["output.weight"]),
    }, mapping


def _of_drafter(tensors: dict[str, Tensor]) -> list[str]:
    """List the drafter's tensors, without those of a model around it."""
    inside = [name for name in tensors if name.startswith(INSIDE_MODEL)]
    return sorted(inside or tensors)


def _authors_names(where: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Map Apple's tensor names to those in the file."""
    names: dict[str, str] = {}
    for source in _of_drafter(tensors):
        spelled = source.removeprefix(INSIDE_MODEL)
        if spelled in IGNORED:
            continue
        matches = [(m, form) for pattern, form in SPELLINGS if (m := pattern.fullmatch(spelled))]
        if not matches:
            raise ValueError(f"{where}: expected no tensor {source} in a ReDrafter, got one")
        ((match, form),) = matches
        name = match.expand(form)
        if name in names:
            raise ValueError(f"{where}: expected one of {names[name]} and {source}, got both")
        names[name] = source
    return names


def _config(where: Path, found: dict[str, Tensor]) -> ReDrafterConfig:
    """Derive sizes from names and shapes; consistency is checked elsewhere."""
    blocks = len({name for name in found if name.endswith("linear.weight")})
    head = f"lm_head.{blocks}.weight"
    for name in (head, *(n for n in ("rnn_w.weight", "input_proj.weight") if n in found)):
        if name not in found:
            raise ValueError(
                f"{where}: expected tensor {name} behind {blocks} residual blocks, got none"
            )
        if found[name].ndim != 2 or 0 in found[name].shape:
            raise ValueError(
                f"{where}: expected a matrix {name}, got shape {list(found[name].shape)}"
            )
    exit_dim = found[head].shape[1]
    rnn = any(name.startswith("rnn_") for name in found)
    if "rnn_w.weight" in found:
        hidden = found["rnn_w.weight"].shape[1]
    elif "input_proj.weight" in found:
        hidden = found["input_proj.weight"].shape[1] // 2
    else:
        hidden = exit_dim // 2
    return ReDrafterConfig(
        hidden_size=hidden,
        exit_dim=exit_dim,
        residual_blocks=blocks,
        rnn=rnn,
        top_rule=AUTHORS_TOP,
        keep="final",
        min_prob=0,
        min_step_prob=0,
    )


def _layers(config: ReDrafterConfig) -> list[str]:
    """List the layers between `[context, state]` and the head, by Apple's names."""
    projection = ["input_proj"] if config.exit_dim != 2 * config.hidden_size else []
    return [*projection, *(f"lm_head.{i}.linear" for i in range(config.residual_blocks))]


def _shapes(config: ReDrafterConfig, found: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """List the tensors of such a drafter; the vocabulary is the file's."""
    width, hidden = config.exit_dim, config.hidden_size
    head = f"lm_head.{config.residual_blocks}.weight"
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in _layers(config):
        inputs = 2 * hidden if layer == "input_proj" else width
        shapes |= {f"{layer}.weight": (width, inputs), f"{layer}.bias": (width,)}
    if config.rnn:
        shapes |= {f"{name}.weight": (hidden, hidden) for name in ("rnn_w", "rnn_u")}
        shapes["rnn_u.bias"] = (hidden,)
    shapes[head] = (len(found[head]), width)
    return shapes
