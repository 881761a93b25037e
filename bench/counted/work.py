"""The least that a call must move and multiply: inputs read once, results written once, products of the formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bench.ops.cases import Call
from specdec_kernels.lm_head import HeadWeights
from specdec_kernels.lm_head.weights import as_head


class Work(NamedTuple):
    """What a call has to do."""

    bytes: int
    flops: int
    dtype: torch.dtype
    """Of the numbers that are multiplied."""


def work_of(call: Call, results: Any) -> Work:
    """Count a call's least work; `results` are what it returned."""
    size, flops, factors = COUNTED.get(call.name, _everything)(**call.arguments)
    return Work(size + _bytes(results), flops, factors)


def sizes_of(call: Call) -> dict[str, int]:
    """Return the sizes that the targets ask about."""
    given = call.arguments
    if call.name == "tree_attention":
        (batch, nodes, heads, _), kv_heads = given["q"].shape, given["k_cache"].shape[1]
        prefix = int(given["prefix_lens"].max())
        sizes = {"nodes": nodes, "prefix": prefix, "rows": nodes * heads // kv_heads}
        return {"batch": batch, **sizes}
    if call.name in ("lm_head_topk", "lm_head_beams"):
        return {"head_bytes": _bytes(as_head(given["head"], {}).weight)}
    if call.name == "draft_step":
        weights, embedding = given["weights"], given["embedding"]
        width = len(weights.state_in)  # of what the head reads
        head = len(embedding) * width * embedding.itemsize
        return {"head_bytes": head, "weight_bytes": _bytes(tuple(weights))}
    first = {"pack_tree": "roots", "accept_tree": "tokens", "commit_kv": "path"}.get(call.name)
    return {"batch": len(given[first])} if first else {}


Counted = tuple[int, int, torch.dtype]


def _bytes(*values: Any) -> int:
    return sum(x.numel() * x.itemsize for x in tree_leaves(values) if isinstance(x, Tensor))


def _everything(**arguments: Any) -> Counted:
    return _bytes(arguments), 0, torch.float32


def _tree_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, prefix_lens: Tensor, ancestors: Tensor, depth: Tensor,
    shared_lens: Tensor | None = None, window: int | None = None, **others: Any,
) -> Counted:  # fmt: skip
    _, nodes, heads, size = q.shape
    prefix = prefix_lens.clamp(max=window or 1 << 62)
    slots = int((prefix + nodes).sum())
    flops = 4 * heads * size * nodes * slots
    if shared_lens is not None:  # in our cases one prefix is everybody's
        slots -= int(shared_lens.sum() - shared_lens.max())
    kv = 2 * slots * k_cache.shape[1] * size * k_cache.itemsize
    return kv + _bytes(q, prefix_lens, ancestors, depth, shared_lens, others), flops, q.dtype


def _head(hidden: Tensor, head: HeadWeights | Tensor, **others: Any) -> Counted:
    flops = 2 * hidden.numel() * len(as_head(head, {}).weight)
    return _bytes(hidden, head, others), flops, hidden.dtype


def _draft_step(
    tokens: Tensor, states: Tensor, embedding: Tensor, weights: Any, **others: Any
) -> Counted:
    matrices = [w for w in tree_leaves(tuple(weights)) if w is not None and w.ndim == 2]
    flops = 2 * tokens.numel() * sum(w.numel() for w in matrices)
    rows = tokens.numel() * embedding.shape[1] * embedding.itemsize
    return rows + _bytes(tokens, states, tuple(weights), others), flops, states.dtype


def _early_exit_step(
    hidden: Tensor, k_cache: Tensor, v_cache: Tensor, adapter: Any, head: Any, prefix_lens: Tensor,
    **others: Any,
) -> Counted:  # fmt: skip
    weights = [w for w in (*adapter, *head) if isinstance(w, Tensor)]
    slots, row = int((prefix_lens + 1).sum()), k_cache.shape[1] * k_cache.shape[3]
    heads = len(adapter.q_proj)
    flops = 2 * len(hidden) * sum(w.numel() for w in weights) + 4 * slots * heads
    kv = 2 * slots * row * k_cache.itemsize
    return kv + _bytes(hidden, weights, prefix_lens, others), flops, hidden.dtype


def _commit_kv(
    kv: Tensor, path: Tensor, lengths: Tensor, prefix_lens: Tensor, **others: Any
) -> Counted:
    index = torch.arange(path.shape[1], device=path.device)
    moved = int(((path != index) & (index <= lengths[:, None])).sum())
    layers, _, _, heads, _, size = kv.shape
    # Read and written.
    rows = 2 * moved * layers * 2 * heads * size * kv.itemsize
    return rows + _bytes(path, lengths, prefix_lens, others), 0, kv.dtype


COUNTED: dict[str, Callable[..., Counted]] = {
    "tree_attention": _tree_attention,
    "lm_head_topk": _head,
    "lm_head_beams": _head,
    "draft_step": _draft_step,
    "early_exit_step": _early_exit_step,
    "commit_kv": _commit_kv,
}
