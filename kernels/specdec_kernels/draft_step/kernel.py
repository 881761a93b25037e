"""One step of the recurrent draft model (gather, cell and residual blocks) in 1 + n launches.

    cell     tokens ─► embedding rows ──► W_w e ─┐
             parents ─► rows of the states ► W_u s ┴► + b, SiLU ─► states [R, E]            R = B * W
    block    states [R, E] ─► W_s s + (W_h h + b, once per round), SiLU, + [h, s] ─► features [R, X]
    block    features ─► W x + b, SiLU, + x ─► features

Beams are gathered by pointer, so no state is copied. The context half of the first block is the same for all beams and
steps of a round, so only its state half is computed here. Tiles are those of `skinny_linear`, with two weights for the
cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.skinny_linear import add_product, choose_tiles, launch_skinny_linear, silu
from ..gpu import gpu_of


@triton.jit(do_not_specialize=["rows", "width", "parents_width"])
def _recurrent_cell_kernel(
    tokens_ptr,
    parents_ptr,
    states_ptr,
    context_ptr,
    embedding_ptr,
    input_ptr,
    recurrent_ptr,
    bias_ptr,
    new_ptr,
    features_ptr,
    stride_states_b,
    stride_states_w,
    stride_context,
    stride_embedding,
    stride_input,
    stride_recurrent,
    rows,
    width,
    parents_width,
    vocabulary,
    embed_scale,
    size,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE: tl.constexpr,
):
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    # Rows beyond the end read the last row again, so the loops need no masks.
    i_r, i_f = tl.minimum(o_r, rows - 1), tl.minimum(o_f, size - 1)
    batch = (i_r // width).to(tl.int64)
    # Ids and parents are clamped to their range, so nothing else is read.
    token = tl.load(tokens_ptr + i_r)
    token = tl.minimum(tl.maximum(token, 0), vocabulary - 1)
    parent = tl.load(parents_ptr + i_r)
    parent = tl.minimum(tl.maximum(parent, 0), parents_width - 1)
    embedded = embedding_ptr + token * stride_embedding
    state = states_ptr + batch * stride_states_b + parent * stride_states_w

    dtype = new_ptr.dtype.element_ty
    m_fr = (o_f < size)[:, None] & (o_r < rows)[None, :]
    if input_ptr is not None:
        acc = tl.zeros([BLOCK_F, BLOCK_R], tl.float32)
        w_rows = input_ptr + i_f.to(tl.int64) * stride_input
        acc = add_product(acc, w_rows, embedded, size, BLOCK_K, WHOLE)
        if (
            embed_scale is not None
        ):  # the product is linear, so scaling its result avoids rounding the rows
            acc *= tl.full([1, 1], embed_scale, tl.float32)
        w_rows = recurrent_ptr + i_f.to(tl.int64) * stride_recurrent
        acc = add_product(acc, w_rows, state, size, BLOCK_K, WHOLE)
        acc = silu(
            acc + tl.load(bias_ptr + o_f, mask=o_f < size, other=0.0).to(tl.float32)[:, None]
        )
    else:
        acc = tl.load(embedded[None, :] + o_f[:, None], mask=m_fr, other=0.0).to(tl.float32)
        if embed_scale is not None:  # rounded as the embedding layer's result
            acc = (acc * tl.full([1, 1], embed_scale, tl.float32)).to(dtype).to(tl.float32)
        acc += tl.load(state[None, :] + o_f[:, None], mask=m_fr, other=0.0).to(tl.float32)

    row = i_r.to(tl.int64)[None, :]
    tl.store(new_ptr + row * size + o_f[:, None], acc.to(dtype), mask=m_fr)
    if features_ptr is not None:
        features = features_ptr + row * (2 * size) + o_f[:, None]
        context = context_ptr + (batch * stride_context)[None, :] + o_f[:, None]
        tl.store(features, tl.load(context, mask=m_fr, other=0.0), mask=m_fr)
        tl.store(features + size, acc.to(dtype), mask=m_fr)


def launch_draft_step(
    tokens: Tensor,
    parents: Tensor,
    states: Tensor,
    context: Tensor,
    context_part: Tensor | None,
    embedding: Tensor,
    recurrent_input: Tensor | None,
    recurrent_state: Tensor | None,
    recurrent_bias: Tensor | None,
    state_in: Tensor | None,
    blocks: Sequence[Tensor],
    biases: Sequence[Tensor],
    embed_scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Launch the kernels; arguments and results as in `draft_step`."""
    (batch, width), size = tokens.shape, states.shape[2]
    rows = batch * width
    tiles = choose_tiles(rows, size, size, states.dtype, gpu_of(states.device))
    new = torch.empty((batch, width, size), dtype=states.dtype, device=states.device)
    features = None
    if context_part is None:  # without layers, the cell writes the features
        features = torch.empty((rows, 2 * size), dtype=states.dtype, device=states.device)
    _recurrent_cell_kernel[(-(-rows // tiles.rows), -(-size // tiles.features))](
        tokens.contiguous(),
        parents.contiguous(),
        states,
        context,
        embedding,
        recurrent_input,
        recurrent_state,
        recurrent_bias,
        new,
        features,
        *states.stride()[:2],
        context.stride(0),
        embedding.stride(0),
        *(0 if w is None else w.stride(0) for w in (recurrent_input, recurrent_state)),
        rows,
        width,
        states.shape[1],
        len(embedding),
        embed_scale,
        size,
        BLOCK_F=tiles.features,
        BLOCK_R=tiles.rows,
        BLOCK_K=tiles.depth,
        WHOLE=size % tiles.depth == 0,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    if features is None:
        assert state_in is not None and context_part is not None
        state = new.view(rows, size)
        block = context_part.shape[1] == 2 * size  # otherwise a projection
        features = launch_skinny_linear(
            state,
            state_in,
            part=context_part,
            silu=block,
            residual=state if block else None,
            context=context if block else None,
        )
    for weight, bias in zip(blocks, biases, strict=True):
        features = launch_skinny_linear(features, weight, bias=bias, silu=True, residual=features)
    return new, features.view(batch, width, -1)
