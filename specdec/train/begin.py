"""Initial weights taken from the target: a small budget of text does not suffice to learn a head from random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..drafters.parts.eagle3_model import Eagle3Model
from ..model.target import Target


@torch.no_grad()
def copy_final_norm(target: Target, norm: nn.RMSNorm) -> None:
    """Set the scale of a norm to that of the target's final norm.

    Args:
        target: without a final norm, nothing is copied.
        norm: over the target's hidden size; its weight is written.
    """
    if target.parts.norm is not None:
        norm.weight.copy_(scale_of(target.parts.norm, target))


def scale_of(norm: Any, target: Target) -> Tensor:
    """Return the scale `[E]` of one of the target's norms, which may subtract the mean, add a bias, or store scales less one."""
    # Numbers of mean zero and mean square one pass every kind of norm unchanged; the difference drops the bias.
    signs = torch.ones(target.config.hidden_size, dtype=target.dtype, device=target.device)
    signs[1::2] = -1
    scale: Tensor = (norm(signs) - norm(-signs)) / 2 * signs
    return scale


@torch.no_grad()
def copy_head(target: Target, draft_vocabulary: Tensor | None, head: nn.Linear) -> None:
    """Set a head's rows to those of the target's head.

    Args:
        target: the head's hidden size is that of its embedding.
        draft_vocabulary: `[Vd]` int64, the tokens of the rows; None for all.
        head: `E -> Vd`; its weight is written.
    """
    head.weight.copy_(target.draft_head(draft_vocabulary).linear.weight)


@torch.no_grad()
def copy_last_layer(target: Target, model: Eagle3Model) -> None:
    """Set an EAGLE-3 layer to the target's last layer, behind a fusion that passes on the highest of its states.

    The attention's weights for embeddings stay as they are, as the target's layer has none.

    Args:
        target: where its last layer has other parts or sizes than a Llama's, nothing is copied.
        model: on the target's hidden size; its weights are written.
    """
    width = model.config.hidden_size
    layer: Any = target.parts.layers[-1]
    linears = {
        **{f"self_attn.{name}_proj": getattr(model, f"{name}_proj").weight[:, -width:] for name in "qkv"},
        "self_attn.o_proj": model.o_proj.weight,
        **{f"mlp.{name}_proj": getattr(model, f"{name}_proj").weight for name in ("gate", "up", "down")},
    }  # fmt: skip
    norms = {"input_layernorm": model.hidden_norm, "post_attention_layernorm": model.mlp_norm}
    weights = {name.removesuffix(".weight"): x for name, x in layer.named_parameters()}
    shapes = {name: x.shape for name, x in linears.items()}
    shapes |= {name: norm.weight.shape for name, norm in norms.items()}
    if {name: x.shape for name, x in weights.items()} != shapes:
        return
    for name, ours in linears.items():
        ours.copy_(weights[name])
    for name, norm in norms.items():
        norm.weight.copy_(scale_of(getattr(layer, name), target))
    nn.init.zeros_(model.fuse.weight)
    nn.init.eye_(model.fuse.weight[:, -width:])
