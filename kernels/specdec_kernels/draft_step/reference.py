"""One step of ReDrafter's recurrent draft model (ReDrafter section 3.1).

    s  = SiLU(W_w e + W_u s' + b)          the token's embedding e meets the state s' of its beam
    x  = [h, s]                            h: the target's last hidden state, the same for the whole draft
    x  = x + SiLU(W x + b), n times        residual blocks

W x of the first block is W_h h + W_s s, so its context half is computed once per round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]


def recurrent_state(
    embedded: Tensor, state: Tensor, recurrent_input: Linear | None, recurrent_state: Linear | None
) -> Tensor:
    """Update states `[..., E]` with embedded tokens; without layers a running sum (`rnn=False`)."""
    if recurrent_input is None or recurrent_state is None:
        return embedded + state
    return F.silu(recurrent_input(embedded) + recurrent_state(state))


def draft_features(
    context: Tensor,
    context_part: Tensor | None,
    state: Tensor,
    state_in: Linear | None,
    blocks: Sequence[Linear],
    *,
    projected: bool,
) -> Tensor:
    """Turn context `[..., E]` and state `[..., E]` into the head's input.

    Args:
        context: the target's hidden state h.
        context_part: `[..., X]`, h's part of the first layer, bias included; None without a first layer.
        state: s.
        state_in: s's part of the first layer.
        blocks: the residual blocks that follow.
        projected: True if the first layer is a projection `2E -> X`, False if it is the first residual block.

    Returns:
        `[..., X]`.
    """
    if context_part is None or state_in is None:
        x = torch.cat([context.expand_as(state), state], -1)
    elif projected:
        x = context_part + state_in(state)
    else:
        x = torch.cat([context.expand_as(state), state], -1) + F.silu(
            context_part + state_in(state)
        )
    for block in blocks:
        x = x + F.silu(block(x))
    return x


def gather_inputs(
    tokens: Tensor, parents: Tensor, states: Tensor, embedding: Tensor, embed_scale: float | None
) -> tuple[Tensor, Tensor]:
    """Gather the embeddings `[B, W, E]` of `tokens [B, W]` and the states `[B, W, E]` that they continue.

    Ids and parents out of range are clamped.
    """
    embedded = F.embedding(tokens.clamp(0, len(embedding) - 1), embedding)
    if embed_scale is not None:
        embedded = embedded * embed_scale
    parents = parents.clamp(0, states.shape[1] - 1)
    return embedded, states.gather(1, parents[..., None].expand(-1, -1, states.shape[2]))


def draft_step_reference(
    tokens: Tensor,
    parents: Tensor,
    states: Tensor,
    context: Tensor,
    context_part: Tensor | None,
    embedding: Tensor,
    recurrent_input: Tensor | None,
    recurrent_state_weight: Tensor | None,
    recurrent_bias: Tensor | None,
    state_in: Tensor | None,
    blocks: Sequence[Tensor],
    biases: Sequence[Tensor],
    embed_scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Reference implementation; arguments and results as in `draft_step`, with the weights one by one."""
    embedded, states = gather_inputs(tokens, parents, states, embedding, embed_scale)
    states = recurrent_state(
        embedded,
        states,
        _layer(recurrent_input),
        _layer(recurrent_state_weight, recurrent_bias),
    )
    features = draft_features(
        context[:, None],
        None if context_part is None else context_part[:, None],
        states,
        _layer(state_in),
        [partial(F.linear, weight=w, bias=b) for w, b in zip(blocks, biases, strict=True)],
        projected=context_part is not None and context_part.shape[1] != 2 * states.shape[2],
    )
    return states, features


def _layer(weight: Tensor | None, bias: Tensor | None = None) -> Linear | None:
    return None if weight is None else partial(F.linear, weight=weight, bias=bias)
