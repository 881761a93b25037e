"""One token per row through Kangaroo's adapter, its head and its stop rule: five launches, no host read.

    1  _adapter_qkv      RMSNorm, q k v, rotation; k and v into slot P of the cache
    2  tree_attention    one node after a prefix of P slots (and a merge, if the prefix is split)
    3  _skinny_linear    o_proj, + hidden
    4  _head_tiles       RMSNorm, head; best token and sum of exponentials per tile of the vocabulary
    5  _exit             token, confidence = 1 / sum exp(l - max), position + 1, stop if below eta

Stopped rows and rows of padding are skipped: a program without a running row returns at once, and attention gets an empty
prefix for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..device.skinny_linear import launch_skinny_linear
from ..lm_head import HeadWeights
from ..lm_head.kernel import launch_head_tiles
from ..tree_attention import tree_attention
from .kernel import launch_adapter_qkv, launch_exit


def launch_early_exit_step(
    hidden: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    prefix_lens: Tensor,
    cache_rows: Tensor | None,
    positions: Tensor,
    stopped: Tensor,
    appends: Tensor | None,
    tokens: Tensor,
    confidence: Tensor,
    input_norm: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    o_weight: Tensor,
    output_norm: Tensor,
    rope_theta: float,
    norm_eps: float,
    head_weight: Tensor,
    head_bias: Tensor | None,
    id_map: Tensor | None,
    logit_scale: float | None,
    softcap: float | None,
    round_to: torch.dtype | None,
    eta: float,
) -> None:
    """Launch the kernels of one step; arguments as in `early_exit_step`."""
    q, tree = launch_adapter_qkv(
        hidden, k_cache, v_cache, prefix_lens, cache_rows, positions, stopped, appends,
        input_norm, q_weight, k_weight, v_weight, rope_theta, norm_eps,
    )  # fmt: skip
    prefix, ancestors, depth, idle = tree
    attended = tree_attention(
        q[:, None],
        k_cache,
        v_cache,
        prefix_lens=prefix,
        ancestors=ancestors[:, None, None],
        depth=depth[:, None],
        cache_rows=cache_rows,
        impl="triton",
    )
    x = launch_skinny_linear(attended.flatten(1), o_weight, residual=hidden, stopped=idle)
    keys, maxima, sums = launch_head_tiles(
        x,
        HeadWeights(head_weight, head_bias, id_map, logit_scale, softcap, round_to),
        1,
        norm_weight=output_norm,
        norm_eps=norm_eps,
        stopped=idle,
    )
    launch_exit(keys, maxima, sums, id_map, idle, positions, stopped, tokens, confidence, eta)
