"""The public function `early_exit_step` and its registered op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_integers, check_kernel_float, check_last_stride, check_shape
from ..dispatch import Impl, chooses_kernel, register
from ..lm_head import HeadWeights
from ..lm_head.ops import check_rounding
from ..tree_attention.ops import MAX_HEAD_DIM
from .reference import AdapterWeights, early_exit_step_reference, functional_parts


def early_exit_step(
    hidden: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    adapter: AdapterWeights,
    head: HeadWeights,
    *,
    prefix_lens: Tensor,
    positions: Tensor,
    stopped: Tensor,
    tokens: Tensor,
    confidence: Tensor,
    eta: float,
    cache_rows: Tensor | None = None,
    appends: Tensor | None = None,
    impl: Impl = "auto",
) -> None:
    """Draft one token per row after the target's exit layer, and stop rows with low confidence (Kangaroo 3.2).

    The host reads nothing, so a draft is a fixed number of calls. A call writes `k_cache`, `v_cache`, `tokens`,
    `confidence`, `positions` (increased by 1) and `stopped` (True if the confidence is below `eta`), only for rows that
    had not stopped before it. Stopped rows cost almost nothing.

    The token that stops a row is verified too, so the next call must append its key and value: pass as `appends` the rows
    that had not stopped before the call that drafted it.

    Args:
        hidden: `[B, E]`, hidden states after the exit layer.
        k_cache: `[rows, G, S, D]`, D even; the token's key is written to slot `prefix_lens[b]`, unless that is beyond S.
        v_cache: like `k_cache`.
        adapter: the adapter's weights.
        head: the target's head, or some rows of it.
        prefix_lens: `[B]` int64, number of slots before this token's.
        positions: `[B]` int64, this token's absolute position; written.
        stopped: `[B]` bool, rows that do not draft; written. Callers may set it for limits per row.
        tokens: `[B]` int64, may be a column of a larger tensor; written.
        confidence: `[B]` float32, the token's probability, may be a column; written.
        eta: confidence below which a token is its row's last.
        cache_rows: `[B]` int64, distinct cache rows; -1 for a row of padding, which is not written. None for the first B
            rows in order.
        appends: `[B]` bool, rows whose key and value are appended even if they have stopped; None for none.
        impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere).

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, a stride, a size, a device or `impl` does not fit.
    """
    model = (hidden, k_cache, v_cache, adapter, head)
    rows: dict[str, Any] = {
        "prefix_lens": prefix_lens, "positions": positions, "stopped": stopped,
        "tokens": tokens, "confidence": confidence, "cache_rows": cache_rows, "appends": appends,
    }  # fmt: skip
    if check_early_exit_step(*model, rows, impl):
        run_early_exit_step(*model, rows, eta)
        return
    early_exit_step_reference(
        hidden,
        k_cache,
        v_cache,
        *functional_parts(adapter, head, k_cache.shape[-1]),
        **rows,
        eta=eta,
    )


def check_early_exit_step(
    hidden: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    adapter: AdapterWeights,
    head: HeadWeights,
    rows: dict[str, Any],
    impl: Impl,
) -> bool:
    """Check the arguments of `early_exit_step`, and choose between kernel and reference.

    All conditions of later launches are checked here, because the first launch already writes the cache.

    Args:
        hidden: `[B, E]`; this and the next four as in `early_exit_step`.
        k_cache: `[rows, G, S, D]`.
        v_cache: like `k_cache`.
        adapter: the adapter's weights.
        head: the head's weights.
        rows: the arguments with one entry per row, by name.
        impl: the requested implementation.

    Returns:
        Whether the kernels run.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, a stride, a size, a device or `impl` does not fit.
    """
    _check_shapes(hidden, k_cache, v_cache, adapter, head, rows)
    weights = dict(zip(AdapterWeights._fields[:6], adapter[:6], strict=True))
    floats = {
        "hidden": hidden, "k_cache": k_cache, "v_cache": v_cache,
        **weights, "head.weight": head.weight, "head.bias": head.bias,
    }  # fmt: skip
    if not chooses_kernel(impl, *floats.values(), *rows.values(), head.id_map):
        return False
    check_kernel_float(**floats)
    check_last_stride(**floats)
    for name, x in {**weights, "positions": rows["positions"], "stopped": rows["stopped"]}.items():
        if not x.is_contiguous():
            raise ValueError(f"{name}: expected contiguous, got strides {x.stride()}")
    if k_cache.shape[-1] > MAX_HEAD_DIM:
        raise ValueError(
            f"k_cache: expected heads of at most {MAX_HEAD_DIM} in a kernel, got {k_cache.shape[-1]}"
        )
    check_rounding("head.round_to", head.round_to)
    return True


def run_early_exit_step(
    hidden: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    adapter: AdapterWeights,
    head: HeadWeights,
    rows: dict[str, Any],
    eta: float,
) -> None:
    """Run the kernels on checked arguments; as `early_exit_step`."""
    names = (
        "prefix_lens", "cache_rows", "positions", "stopped", "appends", "tokens", "confidence"
    )  # fmt: skip
    _early_exit_step(
        hidden, k_cache, v_cache, *(rows[name] for name in names), *adapter, *head, eta
    )


def _check_shapes(
    hidden: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    adapter: AdapterWeights,
    head: HeadWeights,
    rows: dict[str, Any],
) -> None:
    if hidden.ndim != 2 or not hidden.numel():
        raise ValueError(f"hidden: expected shape [B >= 1, E], got {list(hidden.shape)}")
    batch, size = hidden.shape
    if (
        k_cache.ndim != 4
        or k_cache.shape != v_cache.shape
        or k_cache.shape[-1] % 2
        or not k_cache.numel()
    ):
        raise ValueError(
            "k_cache, v_cache: expected two tensors [rows, G, S, D], none of these 0 and D even, "
            f"got {list(k_cache.shape)} and {list(v_cache.shape)}"
        )
    _, kv_heads, _, head_dim = k_cache.shape
    if rows["cache_rows"] is None and batch > len(k_cache):
        raise ValueError(f"hidden: expected at most {len(k_cache)} rows as in k_cache, got {batch}")
    for name, x in rows.items():
        if x is not None:
            check_shape(name, x, (batch,))
    for name, dtype in (
        ("stopped", torch.bool), ("appends", torch.bool), ("confidence", torch.float32)
    ):  # fmt: skip
        x = rows[name]
        if x is not None and x.dtype != dtype:
            raise TypeError(f"{name}: expected {dtype}, got {x.dtype}")
    check_integers(
        **{name: rows[name] for name in ("prefix_lens", "positions", "tokens", "cache_rows")},
        id_map=head.id_map,
    )
    wide = len(adapter.q_proj)
    if adapter.q_proj.ndim != 2 or wide % (kv_heads * head_dim) or not wide:
        raise ValueError(
            f"q_proj: expected shape [H * {head_dim}, {size}] with H a multiple of {kv_heads}, "
            f"got {list(adapter.q_proj.shape)}"
        )
    narrow = kv_heads * head_dim
    shapes = ((size,), (wide, size), (narrow, size), (narrow, size), (size, wide), (size,))
    for name, x, shape in zip(AdapterWeights._fields[:6], adapter[:6], shapes, strict=True):
        check_shape(name, x, shape)
    if not adapter.rope_theta > 0:
        raise ValueError(f"rope_theta: expected above 0, got {adapter.rope_theta}")
    if head.weight.ndim != 2 or head.weight.shape[1] != size or not len(head.weight):
        raise ValueError(
            f"head.weight: expected shape [V >= 1, {size}], got {list(head.weight.shape)}"
        )
    for name, x in (("head.bias", head.bias), ("head.id_map", head.id_map)):
        if x is not None:
            check_shape(name, x, head.weight.shape[:1])


def _launch(*arguments: Any) -> None:
    from .step import launch_early_exit_step

    launch_early_exit_step(*arguments)


def _fake(*arguments: Any) -> None:
    return None


_early_exit_step = register(
    "early_exit_step(Tensor hidden, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor prefix_lens, Tensor? cache_rows,"
    " Tensor(c!) positions, Tensor(d!) stopped, Tensor? appends, Tensor(e!) tokens, Tensor(f!) confidence,"
    " Tensor input_norm, Tensor q_proj, Tensor k_proj, Tensor v_proj, Tensor o_proj, Tensor output_norm,"
    " float rope_theta, float norm_eps, Tensor head_weight, Tensor? head_bias, Tensor? id_map, float? logit_scale,"
    " float? softcap, ScalarType? round_to, float eta) -> ()",
    _launch,
    _fake,
)
