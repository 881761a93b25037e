"""Attention over a tree with what others offer; masks are made beforehand, as for many layers over one tree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec_kernels.ancestors import unpack_bits
from specdec_kernels.tree_attention import tree_mask


def attention_peers(
    arguments: dict[str, Any], backend: str
) -> tuple[dict[str, Any], dict[str, Callable[[], Callable[[], Any]]]]:
    """Return what the reference is given, and the peers that know no shared prefix, cap or window.

    The reference is SDPA with a dense mask at its best: the query heads of a K/V head are rows, K and V are neither
    repeated nor gathered (in our cases the cache's rows come in order). `repeated` is how models call it.
    """
    q, k, v = (arguments[name] for name in ("q", "k_cache", "v_cache"))
    group, slots = q.shape[2] // k.shape[1], k.shape[2]
    prefix, ancestors = arguments["prefix_lens"], arguments["ancestors"]
    mask = partial(tree_mask, prefix, ancestors, arguments["depth"], columns=slots)
    own = {
        "mask": mask(group=group, window=arguments.get("window"), dtype=k.dtype),
        "cache_rows": None,
    }
    if any(arguments.get(name) is not None for name in ("shared_rows", "softcap", "window")):
        return own, {}
    heads_first = q.transpose(1, 2)
    peers: dict[str, Callable[[], Callable[[], Any]]] = {
        "repeated": lambda: partial(_repeated, heads_first, k, v, mask(dtype=k.dtype)[:, None]),
        "flex": lambda: _flex(heads_first, k, v, prefix, ancestors, backend),
    }
    if q.shape[1] == 1:  # in our cases every row then sees all of its cache
        sdpa = partial(F.scaled_dot_product_attention, heads_first, k, v, enable_gqa=True)
        peers["sdpa"] = lambda: lambda: sdpa().transpose(1, 2)
    if len(q) == 1 and find_spec("flashinfer"):
        peers["flashinfer"] = lambda: _flashinfer(q[0], k[0], v[0], mask()[0] == 0)
    return own, peers


def _repeated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _flex(
    q: Tensor, k: Tensor, v: Tensor, prefix: Tensor, ancestors: Tensor, backend: str
) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    batch, _, nodes, _ = q.shape
    is_ancestor = unpack_bits(ancestors, nodes)

    def sees(b: Tensor, h: Tensor, i: Tensor, slot: Tensor) -> Tensor:
        node = slot - prefix[b]
        seen = is_ancestor[b, i, node.clamp(0, nodes - 1)] & (node < nodes)
        return (node < 0) | seen

    blocks = create_block_mask(sees, batch, None, nodes, k.shape[2], device=q.device)
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False, backend=backend)
    attend = partial(compiled, q, k, v, block_mask=blocks, enable_gqa=True)
    return lambda: attend().transpose(1, 2)


def _flashinfer(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    import flashinfer

    attend = flashinfer.single_prefill_with_kv_cache
    return lambda: attend(q, k, v, custom_mask=mask, kv_layout="HND")[None]
