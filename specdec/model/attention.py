"""The attention function that the library's layers call in our passes: over the cache and a tree behind it."""

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
# What layers pass on that changes nothing here. Anything else might: sinks, biases, indices of what to attend to.
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
    """Attend as the library's attention interface asks: `[B, H, N, D]` queries in, `[B, N, H, D]` out."""
    if tree_pass is None:
        raise NotImplementedError(
            "attention: expected a pass of specdec.Target, got a plain forward or layers "
            "that do not hand their options on"
        )
    options["attention_mask"] = attention_mask  # we pass none, so this is the layer's own
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
    """Let a model's layers, which read `config`, attend through us for the length of a pass; passes of other threads wait."""
    with lock_of(model), full_precision_sums(device):
        before = config._attn_implementation
        try:
            config._attn_implementation = ATTENTION
            yield
        finally:
            # What somebody else has chosen meanwhile stays.
            if config._attn_implementation == ATTENTION:
                config._attn_implementation = before
