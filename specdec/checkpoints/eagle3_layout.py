"""EAGLE-3 in the layouts of its authors and of the library speculators: a decoder layer with a second input norm.

    authors                     speculators               ours
    fc                          the same                  fuse
    midlayer.input_layernorm    layers.0.…                embedding_norm
    midlayer.hidden_norm        layers.0.…                hidden_norm
    midlayer.self_attn.{q,k,v,o}_proj    layers.0.…       the same, without the prefix
    midlayer.post_attention_layernorm    layers.0.…       mlp_norm
    midlayer.mlp.{gate,up,down}_proj     layers.0.…       the same, without the prefix
    norm, lm_head               the same                  output_norm, output
    embed_tokens                the same                  embedding, where it is not the target's
    d2t, t2d                    the same                  draft_vocabulary

`d2t [Vd]` says how far a token's id is from its row, `t2d [V]` which ids are there.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..drafters.parts.eagle3_model import AUTHORS_LAYERS, Eagle3Config
from .eagle3_config import LAYER_IDS, Described, Kind, outputs_of_default, read_config
from .format import VOCABULARY
from .mapping import TensorMapping
from .target_facts import TargetFacts
from .tensors import check_shapes

PREFIXES: dict[Kind, str] = {"authors": "midlayer.", "speculators": "layers.0."}
OF_LAYER = {
    "input_layernorm": "embedding_norm",
    "hidden_norm": "hidden_norm",
    **{f"self_attn.{name}_proj": f"{name}_proj" for name in "qkvo"},
    "post_attention_layernorm": "mlp_norm",
    **{f"mlp.{name}_proj": f"{name}_proj" for name in ("gate", "up", "down")},
}
AROUND = {"fc": "fuse", "norm": "output_norm", "lm_head": "output"}
OFFSETS, MEMBERS, EMBEDDING = "d2t", "t2d", "embed_tokens.weight"
IGNORED = {
    re.compile(r".*rotary_emb\.inv_freq"): "follows from the sizes",
    re.compile(r"verifier_(lm_head|norm)\.weight"): "the target's own, kept for training",
}


def kind_of(tensors: dict[str, Tensor]) -> Kind | None:
    """Detect the layout of tensors; None if it is neither."""
    if any(name.startswith(PREFIXES["authors"]) for name in tensors):
        return "authors"
    fused = {"fc.weight", f"{PREFIXES['speculators']}hidden_norm.weight"}
    return "speculators" if tensors.keys() & fused else None


def read_eagle3(
    where: Path,
    tensors: dict[str, Tensor],
    theirs: dict[str, Any],
    target: TargetFacts,
    *,
    embedding: Tensor | None = None,
    layers: tuple[int, ...] | None = None,
) -> tuple[Eagle3Config, TensorMapping]:
    """Map a checkpoint to our names.

    Args:
        where: it was read from, for messages.
        tensors: all of it, in one of the two layouts.
        theirs: its `config.json`.
        target: what it was trained for.
        embedding: `[V, E]`, the target's; one in the checkpoint must be a copy, unless its configuration tells of another.
        layers: of the target, whose inputs it reads; None for what the configuration says, or else the authors' choice.

    Returns:
        The configuration and the mapping.

    Raises:
        ValueError: if a size or the vocabulary is not the target's; naming an entry of the configuration that is malformed or of
            another mathematics; naming a tensor that is missing, unexpected, of an unexpected shape or in contradiction to
            another.
    """
    kind = kind_of(tensors) or "authors"
    said = read_config(
        where,
        kind,
        theirs,
        target_layers=target.layers,
        target_vocabulary=target.vocab_size,
        layers=layers,
    )
    config, rows = said.drafter, said.draft_vocab_size
    width = config.target_size or config.hidden_size
    if width != target.hidden_size:
        raise ValueError(f"hidden_size: expected the target's {target.hidden_size}, got {width}")
    if (size := said.vocab_size) != target.vocab_size:
        raise ValueError(
            f"vocab_size: expected the target's vocabulary of {target.vocab_size}, got {size}"
        )
    mapping = TensorMapping(tensors)
    kept = dict(tensors)
    for name in tensors:
        for pattern, why in IGNORED.items():
            if pattern.fullmatch(name):
                mapping.leave_out(name, why)
                del kept[name]
    own = _has_own_embedding(where, kept.get(EMBEDDING), embedding, said)
    config = replace(config, own_embedding=own)
    if EMBEDDING in kept and not own:
        mapping.leave_out(EMBEDDING, "the target's own")
        del kept[EMBEDDING]
    offsets, members = kept.pop(OFFSETS, None), kept.pop(MEMBERS, None)
    check_shapes(where, _shapes(kind, config, rows, target.vocab_size), kept)
    for source, name in _names(kind, config).items():
        if name != "output.weight":
            mapping.copy(source, name)
    ids = _vocabulary(where, offsets, members, rows, target.vocab_size)
    _map_vocabulary(mapping, ids)
    return config, mapping


def write_eagle3(
    config: Eagle3Config, weights: dict[str, Tensor], target: TargetFacts, kind: Kind
) -> tuple[dict[str, Any], TensorMapping]:
    """Map our weights to the names of one of the layouts.

    Returns:
        The content of its `config.json`, and the mapping.

    Raises:
        ValueError: if the layout cannot hold the drafter: other layers than the authors' choice, another number of them, layers
            that a reader takes for others, or a layer that adds to the normed state.
    """
    if config.fused != AUTHORS_LAYERS:
        raise ValueError(
            f"layers: expected {AUTHORS_LAYERS}, as the layout has, got {config.fused}"
        )
    chosen = (2, target.layers // 2, target.layers - 3)
    if kind == "authors" and config.layers not in (None, chosen):
        raise ValueError(
            f"layers: expected {list(chosen)}, the authors' choice, got {list(config.layers or ())}"
        )
    if kind == "speculators" and config.layers == outputs_of_default(target.layers):
        raise ValueError(
            f"layers: expected others than {list(config.layers)}, which a reader takes for {list(chosen)}, got them"
        )
    if kind == "authors" and config.rope_scaling is not None:
        raise ValueError("rope_scaling: expected None, as the authors' code has none, got some")
    if kind == "authors" and config.norm_residual:
        raise ValueError(
            "norm_residual: expected False, as the authors' code adds to the state itself, got True"
        )
    mapping = TensorMapping(weights)
    for name, source in _names(kind, config).items():
        mapping.copy(source, name)
    rows = len(weights["output.weight"])
    if (ids := weights.get(VOCABULARY)) is not None:
        mapping.make(VOCABULARY, OFFSETS, ids - torch.arange(len(ids)), "as offsets")
        members = torch.zeros(target.vocab_size, dtype=torch.bool)
        members[ids] = True
        mapping.make(VOCABULARY, MEMBERS, members, "as membership")
    wide = config.target_size or config.hidden_size
    dtype = str(weights["output.weight"].dtype).removeprefix("torch.")
    inner = {
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "model_type": "llama",
        "num_attention_heads": config.heads,
        "num_hidden_layers": 1,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None
        if config.rope_scaling is None
        else {"rope_type": "llama3", **config.rope_scaling},
        "rope_theta": config.rope_theta,
        "vocab_size": target.vocab_size,
    }
    if kind == "authors":
        return {
            "architectures": ["LlamaForCausalLM"],
            **inner,
            "torch_dtype": dtype,
            "draft_vocab_size": rows,
            **({"target_hidden_size": wide} if config.own_embedding or config.target_size else {}),
        }, mapping
    return {
        "architectures": ["Eagle3Speculator"],
        "draft_vocab_size": rows,
        "embed_requires_grad": config.own_embedding,
        LAYER_IDS: None if config.layers is None else list(config.layers),
        "norm_before_residual": config.norm_residual,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": config.depth}],
            "verifier": {"architectures": [], "name_or_path": None},
        },
        "speculators_model_type": "eagle3",
        "target_hidden_size": config.target_size,
        "torch_dtype": dtype,
        "transformer_layer_config": inner,
    }, mapping


def _names(kind: Kind, config: Eagle3Config) -> dict[str, str]:
    """Map their names to ours."""
    names = {f"{PREFIXES[kind]}{name}": ours for name, ours in OF_LAYER.items()} | AROUND
    if config.own_embedding:
        names["embed_tokens"] = "embedding"
    return {f"{name}.weight": f"{ours}.weight" for name, ours in names.items()}


def _shapes(
    kind: Kind, config: Eagle3Config, rows: int, vocabulary: int
) -> dict[str, tuple[int, ...]]:
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    fused = config.fused * (config.target_size or width)
    ours = {
        "fuse": (width, fused), "embedding_norm": (width,), "hidden_norm": (width,), "q_proj": (queries, 2 * width),
        "k_proj": (keys, 2 * width), "v_proj": (keys, 2 * width), "o_proj": (width, queries), "mlp_norm": (width,),
        "gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner), "output_norm": (width,),
        "output": (rows, width), "embedding": (vocabulary, width),
    }  # fmt: skip
    return {name: ours[own.removesuffix(".weight")] for name, own in _names(kind, config).items()}


def _has_own_embedding(
    where: Path, found: Tensor | None, embedding: Tensor | None, said: Described
) -> bool:
    """Return whether a checkpoint's embedding is used; False for a copy of the target's, or none.

    Raises:
        ValueError: if it is another one without the configuration's leave, or missing where the target's is of another width.
    """
    if embedding is None:
        return found is not None and said.may_embed
    if found is None:
        if (width := said.drafter.hidden_size) != embedding.shape[1]:
            raise ValueError(
                f"{where}: expected tensor {EMBEDDING} of shape {[said.vocab_size, width]}, as the head is narrower or "
                f"wider than the target's embedding of {embedding.shape[1]}, got none"
            )
        return False
    if _is_copy(found, embedding):
        return False
    if not said.may_embed:
        raise ValueError(
            f"{where}: expected the target's embedding {list(embedding.shape)} in tensor {EMBEDDING}, got another {list(found.shape)}"
        )
    return True


def _is_copy(copy: Tensor, embedding: Tensor) -> bool:
    """Return whether two embeddings are equal but for rounding to bfloat16 or float16."""
    if copy.shape != embedding.shape:
        return False
    # A step of bfloat16 is 2^-7 of a number, one of the smallest float16 6e-8. In parts, as one of a large model takes gigabytes.
    return all(
        torch.allclose(a.float(), b.detach().cpu().float(), rtol=2**-7, atol=1e-6)
        for a, b in zip(copy.split(8192), embedding.split(8192), strict=True)
    )


def _vocabulary(
    where: Path, offsets: Tensor | None, members: Tensor | None, rows: int, size: int
) -> Tensor | None:
    """Return the token of each row of the head, `[rows]` int64; None for the full vocabulary."""
    if rows == size:
        return None  # the authors' code drops both tensors in this case
    if offsets is None:
        raise ValueError(
            f"{where}: expected tensor {OFFSETS} for a draft vocabulary of {rows} of {size} tokens, got none"
        )
    if list(offsets.shape) != [rows] or offsets.is_floating_point():
        raise ValueError(
            f"{where}: expected tensor {OFFSETS} of {rows} integers, got {offsets.dtype} of shape {list(offsets.shape)}"
        )
    ids = offsets.long() + torch.arange(rows)
    ordered = ids.sort().values
    if ordered[0] < 0 or ordered[-1] >= size or bool((ordered[1:] == ordered[:-1]).any()):
        raise ValueError(
            f"{where}: expected tensor {OFFSETS} to name {rows} of the target's {size} tokens once each, got "
            f"{int(ordered[0])} to {int(ordered[-1])}, {len(ordered.unique())} different ones"
        )
    if members is not None:
        if list(members.shape) != [size]:
            raise ValueError(
                f"{where}: expected tensor {MEMBERS} of the target's {size} tokens, got shape {list(members.shape)}"
            )
        if not torch.equal(members.bool().nonzero()[:, 0], ordered):
            raise ValueError(
                f"{where}: expected tensor {MEMBERS} to name the tokens of {OFFSETS}, got others"
            )
    return ids


def _map_vocabulary(mapping: TensorMapping, ids: Tensor | None) -> None:
    """Copy the head and its draft vocabulary, sorted by token id."""
    tensors = mapping.source
    order = None if ids is None else ids.argsort()
    if ids is None or order is None:
        mapping.copy("lm_head.weight", "output.weight")
        for name in tensors.keys() & {OFFSETS, MEMBERS}:
            mapping.leave_out(name, "the draft vocabulary is the target's")
        return
    if bool((order[1:] > order[:-1]).all()):
        mapping.copy("lm_head.weight", "output.weight")
    else:
        rows_in_order = tensors["lm_head.weight"][order]
        mapping.make("lm_head.weight", "output.weight", rows_in_order, "rows in the order of ids")
    mapping.make(OFFSETS, VOCABULARY, ids[order], "ids in place of offsets")
    if MEMBERS in tensors:
        mapping.leave_out(MEMBERS, f"follows from {OFFSETS}")
