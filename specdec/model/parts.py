"""Finds the parts of a decoder by structure, not by the model's name.

    tokens ─► embedding ─► (projection) + (learned positions) ─► layers ─► norm ─► (projection) ─► head

A decoder with weights in any other part raises an error, as the target's loop would skip that part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec_kernels import LMHeadTopK
from specdec_kernels.dispatch import Impl

from .cpu_linear import PrepackedLinear
from .model_state import check_plain

# Names of the same part in transformers' model families.
POSITIONS = ("wpe", "embed_positions")  # GPT-2, OPT
NORMS = (
    "norm",
    "ln_f",
    "final_layer_norm",
    "final_layernorm",
    "layer_norm",
    "norm_f",
    "final_norm",
)
# Types of attention layers; None for models without layer types.
LAYER_TYPES = (None, "full_attention", "sliding_attention")


class Scaling(NamedTuple):
    """Scale factors of a model besides its weights; None for no scaling."""

    embeddings: float | None
    """Factor applied by the embedding module (Gemma)."""
    first_hidden: float | None
    """Factor applied to the embedding module's output (Granite)."""
    logits: float | None
    """Factor applied to the logits (Cohere)."""
    logits_divisor: float | None
    """Divisor of the logits (Granite)."""
    softcap: float | None
    """Logits become `softcap * tanh(logits / softcap)` (Gemma 2)."""

    @property
    def of_rows(self) -> float | None:
        """Factor for rows of the embedding's weight that are read by index."""
        return self.embeddings if self.first_hidden is None else self.first_hidden

    @property
    def logit_factor(self) -> float | None:
        """Factor and divisor combined; rounds differently from the model."""
        if self.logits_divisor is None:
            return self.logits
        return (1 if self.logits is None else self.logits) / self.logits_divisor

    def finish(self, logits: Tensor) -> Tensor:
        """Apply scaling and soft-cap to the head's products `[..., V]`, in the model's order."""
        if self.logits is not None:
            logits = logits * self.logits
        if self.logits_divisor is not None:
            logits = logits / self.logits_divisor
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


class DecoderParts(NamedTuple):
    """The parts of a decoder, in the order in which they run."""

    decoder: nn.Module
    """The module that contains them."""
    embed_tokens: nn.Module
    project_in: nn.Module | None
    """Projection from the embeddings' width to the layers' (OPT)."""
    positions: nn.Embedding | None
    """Learned position embeddings; None if layers encode positions."""
    layers: nn.ModuleList
    layer_types: list[str | None]
    """Type of each layer, one of `LAYER_TYPES`."""
    rotary: nn.Module | None
    """Computes the rotary embeddings that layers receive; None if they need none."""
    norm: nn.Module | None
    project_out: nn.Module | None
    head: nn.Module
    scaling: Scaling

    @property
    def position_table(self) -> Tensor | None:
        """`[P, E]`, the learned embeddings of all P positions."""
        if self.positions is None:
            return None
        # OPT reserves the first two rows for padding.
        return self.positions.weight.detach()[getattr(self.positions, "offset", 0) :]

    def rotations(
        self, hidden: Tensor, positions: Tensor, kinds: Sequence[str | None], made: dict[Any, Any]
    ) -> dict[Any, Any]:
        """Return cosines and sines by layer type; adds missing ones to `made`.

        Args:
            hidden: `[B, N, E]`, gives dtype and device.
            positions: `[B, N]` int64, of the nodes.
            kinds: layer types; None if all layers share one rotation.
            made: results so far, by layer type.
        """
        rotary: Any = self.rotary
        for kind in set(kinds) - made.keys():
            by_type = () if kind is None else (kind,)
            made[kind] = None if rotary is None else rotary(hidden, positions, *by_type)
        return made

    def place(self, embedded: Tensor, positions: Tensor) -> Tensor:
        """Turn embeddings `[B, N, E]` at positions `[B, N]` int64 into the first layer's input."""
        hidden: Tensor = embedded if self.project_in is None else self.project_in(embedded)
        if (table := self.position_table) is not None:
            hidden = hidden + nn.functional.embedding(positions, table)
        return hidden


def find_parts(model: PreTrainedModel) -> DecoderParts:
    """Find the parts of a causal language model.

    Raises:
        ValueError: naming the model, if it is not a causal language model, lacks a part or has an unknown one.
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"model: expected a decoder alone, got {name} with an encoder")
    embed_tokens, head = _embedding(model), model.get_output_embeddings()
    owners = [m for m in model.modules() if any(c is embed_tokens for c in m.children())]
    if not isinstance(head, nn.Module) or embed_tokens is None or not owners:
        raise ValueError(
            f"model: expected a language model with an embedding and a head, got {name}"
        )
    decoder = owners[-1]  # the innermost
    children = dict(decoder.named_children())
    lists = [x for x, child in children.items() if isinstance(child, nn.ModuleList)]
    known = {
        *lists[:1], "rotary_emb", "project_in", "project_out", *POSITIONS, *NORMS,
        *(x for x, child in children.items() if child is embed_tokens or child is head),
    }  # fmt: skip
    unknown = [x for x, c in children.items() if x not in known and any(True for _ in c.parameters())]  # fmt: skip
    if not lists or unknown:
        raise ValueError(
            f"model: {name} is not supported: expected a decoder of embeddings, layers and a norm, "
            f"got {'one with ' + ', '.join(unknown) if unknown else 'no list of layers'}"
        )

    layers: Any = children[lists[0]]
    types = list(getattr(decoder.config, "layer_types", None) or [None] * len(layers))
    if others := set(types) - set(LAYER_TYPES):
        raise ValueError(
            f"model: {name} is not supported: expected layers of full or sliding attention, "
            f"got {', '.join(sorted(map(str, others)))}"
        )
    if getattr(decoder.config, "max_position_embeddings", None) is None:
        raise ValueError(
            f"model: {name} is not supported: expected max_position_embeddings in its configuration, got none"
        )

    def first(names: tuple[str, ...]) -> Any:
        return next((children[x] for x in names if children.get(x) is not None), None)

    return DecoderParts(
        decoder=decoder,
        embed_tokens=embed_tokens,
        project_in=first(("project_in",)),
        positions=_learned_positions(name, first(POSITIONS)),
        layers=layers,
        layer_types=types,
        rotary=first(("rotary_emb",)),
        norm=first(NORMS),
        project_out=first(("project_out",)),
        head=head,
        scaling=_scaling(decoder.config, embed_tokens),
    )


def _scaling(config: Any, embed_tokens: nn.Module) -> Scaling:
    embeddings: Any = getattr(embed_tokens, "embed_scale", None)
    if isinstance(embeddings, Tensor):  # Gemma's, rounded to the weights' dtype
        embeddings = float(embeddings.to(embed_tokens.weight.dtype))  # type: ignore[arg-type]
    names = ("embedding_multiplier", "logit_scale", "logits_scaling", "final_logit_softcapping")
    return Scaling(embeddings, *(getattr(config, name, None) for name in names))


def _embedding(model: PreTrainedModel) -> nn.Module | None:
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return embedding if isinstance(getattr(embedding, "weight", None), Tensor) else None


def _learned_positions(name: str, module: Any) -> nn.Embedding | None:
    if module is not None and not isinstance(module, nn.Embedding):
        raise ValueError(
            f"model: {name} is not supported: expected learned positions, got {type(module).__name__}"
        )
    return module


def position_limit(parts: DecoderParts) -> int:
    """Return the number of positions within which a token's encoding does not depend on the length of the text.

    Rotary embeddings of type `dynamic` change beyond `max_position_embeddings`, where text ends anyway.
    """
    config: Any = parts.decoder.config
    limit: int = config.max_position_embeddings
    if parts.position_table is not None:
        limit = min(limit, len(parts.position_table))
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in rope.values() if all(isinstance(v, dict) for v in rope.values()) else [rope]:
        if parameters.get("rope_type") == "longrope":
            limit = min(limit, parameters["original_max_position_embeddings"])
    return limit


def draft_head(parts: DecoderParts, vocabulary: Tensor | None, impl: Impl) -> LMHeadTopK:
    """Create a drafter's head from rows of the target's head.

    Args:
        parts: the target's parts.
        vocabulary: `[Vd]` int64, ascending, the rows to use; None for all, which shares the target's weights.
        impl: implementation of the head.

    Returns:
        The head; it returns ids of the target's vocabulary.

    Raises:
        ValueError: if the target's head is not a plain linear layer with plain weights.
    """
    linear: Any = parts.head
    check_plain("head", linear, type(linear) in (nn.Linear, PrepackedLinear))
    if vocabulary is not None:
        vocabulary = vocabulary.to(linear.weight.device)
        rows = nn.Linear(linear.in_features, len(vocabulary), linear.bias is not None)
        rows.weight = nn.Parameter(linear.weight.detach()[vocabulary], requires_grad=False)
        if linear.bias is not None:
            rows.bias = nn.Parameter(linear.bias.detach()[vocabulary], requires_grad=False)
        linear = rows
    scaling = parts.scaling
    return LMHeadTopK(
        linear,
        logit_scale=scaling.logit_factor,
        softcap=scaling.softcap,
        id_map=vocabulary,
        impl=impl,
    )
