"""Kangaroo's step in few operators for CPUs, where with a small head the work between products costs most.

    norm 6 · q k v 3 · angles 4 · rotation 3 · cache 4 · attention 4 · o and residual 2 · norm 6 · head 1 · choice 13

These are all operators for one row in float32 with prepacked layers; `tolist` adds two per tensor that the host reads.
Intermediate results go into buffers that all steps of one batch size share, and the host knows the cache slots.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..decoder_layer.cpu import CpuNorm, attend_rows
from ..decoder_layer.weights import NormWeights
from ..dispatch import host_may_look
from ..lm_head import LMHeadTopK
from ..lm_head.reference import finish_logits

if TYPE_CHECKING:
    from .module import EarlyExitAdapter

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Most combinations of batch size and thread for which buffers are kept.
KEPT = 8


class StepBuffers:
    """Temporary buffers of a step with B rows, with the views that its operators take."""

    def __init__(self, adapter: EarlyExitAdapter, like: Tensor) -> None:
        """Allocate buffers for hidden states like `[B, E]`."""
        batch, heads, kv_heads, size = len(like), adapter.heads, adapter.kv_heads, adapter.head_dim
        self.normed = torch.empty_like(like)
        self.wide = None if like.dtype == torch.float32 else self.normed.float()
        self.projected = like.new_empty(batch, (heads + 2 * kv_heads) * size)
        qkv = self.projected.unflatten(1, (-1, size))  # [B, H + 2 G, D]
        self.qk, v = qkv.split((heads + kv_heads, kv_heads), 1)
        self.turned = like.new_empty(self.qk.shape)
        self.first, self.second = self.qk.chunk(2, -1)
        self.turned_first, self.turned_second = self.turned.chunk(2, -1)
        # Query heads of a group are rows of one product: [B, G, H / G, D].
        self.rows = self.turned[:, :heads].unflatten(1, (kv_heads, -1))
        self.k, self.v = self.turned[:, heads:, None], v[:, :, None]  # [B, G, 1, D]
        # Negating the first half negates its sines and leaves its cosines unchanged.
        exponents = torch.arange(0, size, 2).float() / size
        self.periods = adapter.rope_theta**exponents
        self.periods = torch.cat([-self.periods, self.periods])
        self.angles = torch.empty(batch, 1, size)
        self.cos, self.sin = (like.new_empty(self.angles.shape) for _ in range(2))
        self.minus_sin, self.plus_sin = self.sin.chunk(2, -1)
        self.input_norm, self.output_norm = (
            CpuNorm(NormWeights(norm.weight, adapter.rms_norm_eps))
            for norm in (adapter.input_norm, adapter.output_norm)
        )


class CpuSteps:
    """The buffers of one adapter; each thread has its own, and a copy of the adapter has none at first."""

    def __init__(self) -> None:
        """Create the collection without buffers."""
        self._kept: dict[tuple[object, ...], StepBuffers] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"_kept": {}}

    def buffers(self, adapter: EarlyExitAdapter, hidden: Tensor) -> StepBuffers:
        """Return the buffers for hidden states `[B, E]`, with the norms' current weights."""
        at = adapter.input_norm.weight.data_ptr(), adapter.output_norm.weight.data_ptr()
        key = threading.get_ident(), len(hidden), hidden.dtype, *at
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= KEPT:
                self._kept.clear()
            # Plain tensors, as steps write them with and without inference mode.
            with torch.inference_mode(False), torch.no_grad():
                like = torch.empty(hidden.shape, dtype=hidden.dtype)
                found = self._kept[key] = StepBuffers(adapter, like)
        return found


def runs_here(hidden: Tensor, *others: Tensor) -> bool:
    """Return whether a step can run in few operators: on a CPU, in one dtype, without graph capture or gradients."""
    alike = all(x.dtype == hidden.dtype for x in others)
    return (
        alike and hidden.dtype in DTYPES and host_may_look(hidden) and not torch.is_grad_enabled()
    )


def early_exit_step_on_cpu(
    adapter: EarlyExitAdapter,
    buffers: StepBuffers,
    hidden: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    head: LMHeadTopK,
    *,
    prefix_lens: Tensor,
    positions: Tensor,
    stopped: Tensor,
    tokens: Tensor,
    confidence: Tensor,
    cache_rows: Tensor | None,
    appends: Tensor | None,
    eta: float,
) -> None:
    """Draft one token per row that has not stopped; arguments as in `EarlyExitAdapter.step`, plus its buffers."""
    batch = len(hidden)
    runs = torch.logical_not(stopped)
    there = None if cache_rows is None else cache_rows >= 0
    if there is not None:
        runs.logical_and_(there)
    normed = buffers.input_norm(hidden, buffers.normed, buffers.wide)
    parts = [linear(normed) for linear in (adapter.q_proj, adapter.k_proj, adapter.v_proj)]
    torch.cat(parts, -1, out=buffers.projected)
    _rotate(buffers, positions)
    if cache_rows is None and batch < len(k_cache):
        k_cache, v_cache = k_cache[:batch], v_cache[:batch]
    slots = _append(buffers, k_cache, v_cache, prefix_lens, stopped, cache_rows, appends)

    mask = None
    if cache_rows is not None:
        k_cache, v_cache = k_cache[cache_rows], v_cache[cache_rows]
    if len(set(slots)) == 1:
        k_cache, v_cache = (x.narrow(2, 0, slots[0] + 1) for x in (k_cache, v_cache))
    else:
        last = torch.tensor(slots)[:, None, None, None]
        mask = torch.arange(k_cache.shape[2]) <= last  # [B, 1, 1, S]
    scale = adapter.head_dim**-0.5
    attended = attend_rows(buffers.rows, k_cache, v_cache, mask, scale=scale, softcap=None)
    x = adapter.o_proj(attended.reshape(batch, -1)).add_(hidden)
    y = buffers.output_norm(x, buffers.normed, buffers.wide)

    # The product is in the layer's dtype already, so logits need no further rounding.
    logits = finish_logits(head.linear(y), head.weights._replace(round_to=None))
    ids, sure = _choose(logits)
    if head.id_map is not None:
        ids = head.id_map[ids]
    torch.where(runs, ids, tokens, out=tokens)
    torch.where(runs, sure, confidence, out=confidence)
    positions.add_(runs)
    unsure = torch.ge(confidence, eta).logical_not_()  # True for NaN too
    if there is not None:
        unsure.logical_and_(there)
    stopped.logical_or_(unsure)


def _rotate(buffers: StepBuffers, positions: Tensor) -> None:
    """Apply rotary embedding to queries and keys with float32 angles, as `rotation` and `rotate` do."""
    torch.div(positions[:, None, None], buffers.periods, out=buffers.angles)
    torch.cos(buffers.angles, out=buffers.cos)
    torch.sin(buffers.angles, out=buffers.sin)
    torch.mul(buffers.qk, buffers.cos, out=buffers.turned)
    buffers.turned_first.addcmul_(buffers.second, buffers.minus_sin)
    buffers.turned_second.addcmul_(buffers.first, buffers.plus_sin)


def _append(
    buffers: StepBuffers,
    k_cache: Tensor,
    v_cache: Tensor,
    prefix_lens: Tensor,
    stopped: Tensor,
    cache_rows: Tensor | None,
    appends: Tensor | None,
) -> list[int]:
    """Write keys and values of running rows and of `appends`; return each row's last visible slot."""
    lens, halted = prefix_lens.tolist(), stopped.tolist()
    rows = list(range(len(lens))) if cache_rows is None else cache_rows.tolist()
    also = [False] * len(lens) if appends is None else appends.tolist()
    most = k_cache.shape[2] - 1
    written = [
        at
        for at, slot in enumerate(lens)
        if (also[at] or not halted[at]) and rows[at] >= 0 and 0 <= slot <= most
    ]
    in_order = cache_rows is None and len(written) == len(lens) and len(set(lens)) == 1
    for cache, new in ((k_cache, buffers.k), (v_cache, buffers.v)):  # [B, G, 1, D]
        if in_order:
            cache.narrow(2, lens[0], 1).copy_(new)
        elif written:
            at = [rows[i] for i in written], slice(None), [lens[i] for i in written]
            cache[at] = new[written, :, 0]
    return [min(max(slot, 0), most) for slot in lens]


def _choose(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best tokens `[B]` of logits `[B, V]` and their probabilities `[B]` in float32."""
    wide = logits if logits.dtype == torch.float32 else logits.float()
    best, ids = wide.max(-1, keepdim=True)  # the lowest id among equals
    # If all logits are -inf, softmax gives NaN; the probability is 0.
    sure = wide.softmax(-1).gather(-1, ids).masked_fill_(best == -torch.inf, 0)
    return ids[:, 0], sure[:, 0]
