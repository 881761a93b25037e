"""Kangaroo in the authors' layout: a Llama layer without its MLP, and a norm.

    theirs                           ours
    layers.0.input_layernorm         input_norm
    layers.0.self_attn.{q,k,v,o}_proj    the same, without the prefix
    norm                             output_norm

Head sizes come from the configuration, as no tensor tells them; the exit layer from the caller, as nothing does.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ..drafters.kangaroo import KangarooConfig
from ..drafters.parts.kangaroo_adapters import ATTENTION
from .format import VOCABULARY
from .mapping import TensorMapping
from .target_facts import TargetFacts
from .tensors import check_shapes

LAYER = "layers.0."
NAMES = {
    f"{LAYER}input_layernorm.weight": "input_norm.weight",
    **{f"{LAYER}self_attn.{name}_proj.weight": f"{name}_proj.weight" for name in "qkvo"},
    "norm.weight": "output_norm.weight",
}
# Old releases of transformers saved the RoPE frequencies, which follow from the sizes.
FREQUENCIES = re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
# A constant in the authors' code, for any target.
AUTHORS_ROPE = 10000.0
AUTHORS_ETA = 0.6


def read_kangaroo(
    where: Path,
    tensors: dict[str, Tensor],
    authors: dict[str, Any],
    target: TargetFacts,
    *,
    exit_layer: int | None,
    rope_theta: float = AUTHORS_ROPE,
) -> tuple[KangarooConfig, TensorMapping]:
    """Map a checkpoint to our names.

    Args:
        where: it was read from, for messages.
        tensors: all of it.
        authors: its `config.json`, a Llama configuration.
        target: what it was trained for.
        exit_layer: how many of the target's layers run before the adapter.
        rope_theta: base of the rotary frequencies.

    Returns:
        The configuration and the mapping.

    Raises:
        ValueError: if the exit layer is missing or out of range; if there is more than one layer; naming a tensor
            that is missing, unexpected or of an unexpected shape.
    """
    if exit_layer is None or not 1 <= exit_layer < target.layers:
        raise ValueError(
            f"exit_layer: expected 1 to {target.layers - 1}, which the checkpoint does not tell "
            f"(2 of 32 layers in the paper), got {exit_layer}"
        )
    layers = {match[1] for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))}
    if len(layers) > 1:
        raise ValueError(f"{where}: expected an adapter of one layer, got {len(layers)}")
    config = _config(where, authors, exit_layer, rope_theta)
    kept = {name: x for name, x in tensors.items() if not FREQUENCIES.fullmatch(name)}
    check_shapes(where, _shapes(config), kept)
    if config.hidden_size != target.hidden_size:
        raise ValueError(
            f"hidden_size: expected the target's {target.hidden_size}, got {config.hidden_size}"
        )
    mapping = TensorMapping(tensors)
    for source, name in NAMES.items():
        mapping.copy(source, name)
    for name in tensors.keys() - kept.keys():
        mapping.leave_out(name, "follows from the sizes")
    return config, mapping


def write_kangaroo(
    config: KangarooConfig, weights: dict[str, Tensor], target: TargetFacts
) -> tuple[dict[str, Any], TensorMapping]:
    """Map our weights to the authors' names.

    Returns:
        The content of their `config.json`, and the mapping.

    Raises:
        ValueError: if the authors' code would compute something else: another adapter, other rotary frequencies or
            head sizes.
    """
    if config.adapter != ATTENTION or config.own_head:
        other = f"{config.adapter} with a head of its own" if config.own_head else config.adapter
        raise ValueError(
            f"adapter: expected {ATTENTION} before the target's head, which the authors' layout holds, got {other}"
        )
    if config.rope_theta != AUTHORS_ROPE:
        raise ValueError(
            f"rope_theta: expected {AUTHORS_ROPE}, the authors' constant, got {config.rope_theta}"
        )
    if config.heads * config.head_dim != config.hidden_size:
        raise ValueError(
            f"head_dim: expected hidden_size / heads = {config.hidden_size / config.heads:g}, as in the authors' "
            f"code, got {config.head_dim}"
        )
    mapping = TensorMapping(weights)
    for name, source in NAMES.items():
        mapping.copy(source, name)
    if VOCABULARY in weights:
        mapping.leave_out(VOCABULARY, "the authors' code drafts from all tokens")
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "model_type": "llama",
        "num_attention_heads": config.heads,
        "num_hidden_layers": 1,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "torch_dtype": str(weights["q_proj.weight"].dtype).removeprefix("torch."),
        "vocab_size": target.vocab_size,
    }, mapping


def _config(
    where: Path, authors: dict[str, Any], exit_layer: int, rope_theta: float
) -> KangarooConfig:
    try:
        hidden, heads = int(authors["hidden_size"]), int(authors["num_attention_heads"])
        return KangarooConfig(
            hidden_size=hidden,
            heads=heads,
            kv_heads=int(authors.get("num_key_value_heads") or heads),
            head_dim=int(authors.get("head_dim") or hidden // heads),
            exit_layer=exit_layer,
            rms_norm_eps=float(authors.get("rms_norm_eps", 1e-6)),
            rope_theta=rope_theta,
            eta=AUTHORS_ETA,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{where}: expected a Llama configuration with hidden_size and num_attention_heads, got {error}"
        ) from error


def _shapes(config: KangarooConfig) -> dict[str, tuple[int, ...]]:
    width, queries = config.hidden_size, config.heads * config.head_dim
    keys = config.kv_heads * config.head_dim
    ours = {
        "input_norm.weight": (width,), "output_norm.weight": (width,), "q_proj.weight": (queries, width),
        "k_proj.weight": (keys, width), "v_proj.weight": (keys, width), "o_proj.weight": (width, queries),
    }  # fmt: skip
    return {source: ours[name] for source, name in NAMES.items()}
