"""The attention function that transformers' layers call in a `Target`'s passes: over the cache and the tree after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from ..host.locks import lock_of
from .full_precision import full_precision_sums
from .tree_pass import Pass

ATTENTION = "specdec_tree"
MEANS = {"s_aux": "attention sinks", "attention_mask": "a mask of the layer's own"}
# Options of layers that do not change the result. Others might (sinks, biases, indices), and raise an error.
HARMLESS = {
    "dropout", "position_ids", "position_embeddings", "use_cache", "is_causal", "output_attentions"
}  # fmt: skip


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    tree_pass: Pass | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface: queries `[B, H, N, D]` in, `[B, N, H, D]` out."""
    if tree_pass is None:
        raise NotImplementedError(
            "attention: expected a pass of specdec.Target, got a plain forward or layers "
            "that do not hand their options on"
        )
    options["attention_mask"] = attention_mask  # passes give none, so a mask is the layer's own
    if wanted := [x for x, value in options.items() if value is not None and x not in HARMLESS]:
        raise NotImplementedError(
            f"attention: expected queries, keys and values alone, got {', '.join(MEANS.get(x, x) for x in wanted)} too"
        )
    tree_pass.windows[module.layer_idx] = sliding_window  # type: ignore[index]
    out = tree_pass.attend(
        query.transpose(1, 2), key, value, scale=scaling, softcap=softcap, window=sliding_window
    )
    return out.to(query.dtype), None


AttentionInterface.register(ATTENTION, _attention)


@contextmanager
def tree_attention_in(model: PreTrainedModel, config: Any, device: torch.device) -> Iterator[None]:
    """Register this attention in `config`, which the model's layers read, for one pass; other threads' passes wait."""
    with lock_of(model), full_precision_sums(device):
        before = config._attn_implementation
        try:
            config._attn_implementation = ATTENTION
            yield
        finally:
            # Keep an implementation that was set meanwhile.
            if config._attn_implementation == ATTENTION:
                config._attn_implementation = before
