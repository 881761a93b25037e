"""The public function `draft_step` and its registered op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..checks import check_integers, check_kernel_float, check_last_stride, check_shape
from ..dispatch import Impl, chooses_kernel, register
from .reference import draft_step_reference


class DraftStepWeights(NamedTuple):
    """The weights of a draft step; returned by `RecurrentDraftStep.step_weights`."""

    recurrent_input: Tensor | None
    """`[E, E]`, W_w; None if the state is a running sum of embeddings."""
    recurrent_state: Tensor | None
    """`[E, E]`, W_u."""
    recurrent_bias: Tensor | None
    """`[E]`."""
    state_in: Tensor | None
    """`[X, E]`, the state's half of the first layer: a residual block if X is 2E, a projection otherwise."""
    blocks: Sequence[Tensor]
    """`[X, X]` each, the residual blocks after it."""
    biases: Sequence[Tensor]
    """`[X]` each."""


def draft_step(
    tokens: Tensor,
    parents: Tensor,
    states: Tensor,
    context: Tensor,
    context_part: Tensor | None,
    embedding: Tensor,
    weights: DraftStepWeights,
    *,
    embed_scale: float | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Run one step of the recurrent draft model on one token per beam (ReDrafter section 3.1).

    Args:
        tokens: `[B, W]` int64, the beams' last tokens; ids out of range are clamped.
        parents: `[B, W]` int64, index of the previous step's beam that each one continues; clamped likewise.
        states: `[B, Wp, E]`, states of the previous step; zeros at the start.
        context: `[B, E]`, the target's hidden states.
        context_part: `[B, X]`, the context's part of the first layer, bias included; None without a first layer.
        embedding: `[V, E]`, the target's embedding.
        weights: the model's weights.
        embed_scale: factor of embeddings (Gemma, Granite); None for none.
        impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere).

    Returns:
        The new states `[B, W, E]` and the features `[B, W, X]` for the head; X is 2E without a first layer.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, a device or `impl` does not fit, or a stride does not fit the kernel.
    """
    arguments = (tokens, parents, states, context, context_part, embedding, weights)
    if check_draft_step(*arguments, impl):
        return run_draft_step(*arguments, embed_scale)
    return draft_step_reference(*arguments[:6], *weights, embed_scale)


def check_draft_step(
    tokens: Tensor,
    parents: Tensor,
    states: Tensor,
    context: Tensor,
    context_part: Tensor | None,
    embedding: Tensor,
    weights: DraftStepWeights,
    impl: Impl,
) -> bool:
    """Check the arguments of `draft_step`; return whether the kernel runs. Errors as there."""
    _check_shapes(tokens, parents, states, context, context_part, embedding, weights)
    *tensors, blocks, biases = weights
    named = {
        "states": states,
        "context": context,
        "context_part": context_part,
        "embedding": embedding,
        **dict(zip(DraftStepWeights._fields[:4], tensors, strict=True)),
        **{f"blocks[{i}]": weight for i, weight in enumerate(blocks)},
        **{f"biases[{i}]": bias for i, bias in enumerate(biases)},
    }
    kernel = chooses_kernel(impl, tokens, parents, *named.values())
    if kernel:
        check_kernel_float(**named)
        check_last_stride(**named)
    return kernel


def run_draft_step(
    tokens: Tensor,
    parents: Tensor,
    states: Tensor,
    context: Tensor,
    context_part: Tensor | None,
    embedding: Tensor,
    weights: DraftStepWeights,
    embed_scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Run the kernels on checked arguments; as `draft_step`."""
    *tensors, blocks, biases = weights
    return _draft_step(  # type: ignore[no-any-return]
        tokens, parents, states, context, context_part, embedding, *tensors,
        list(blocks), list(biases), embed_scale,
    )  # fmt: skip


def _check_shapes(
    tokens: Tensor,
    parents: Tensor,
    states: Tensor,
    context: Tensor,
    context_part: Tensor | None,
    embedding: Tensor,
    weights: DraftStepWeights,
) -> None:
    if tokens.ndim != 2 or not tokens.numel():
        raise ValueError(f"tokens: expected shape [B >= 1, W >= 1], got {list(tokens.shape)}")
    batch = len(tokens)
    if states.ndim != 3 or len(states) != batch or not states.numel():
        raise ValueError(f"states: expected shape [{batch}, Wp >= 1, E], got {list(states.shape)}")
    size = states.shape[2]
    check_shape("parents", parents, tokens.shape)
    check_integers(tokens=tokens, parents=parents)
    check_shape("context", context, (batch, size))
    if embedding.ndim != 2 or embedding.shape[1] != size or not len(embedding):
        raise ValueError(f"embedding: expected shape [V >= 1, {size}], got {list(embedding.shape)}")
    cell = weights[:3]
    if any(w is None for w in cell) and any(w is not None for w in cell):
        raise ValueError(
            "recurrent_input, recurrent_state, recurrent_bias: expected all three or none, got some"
        )
    if (context_part is None) != (weights.state_in is None):
        raise ValueError(
            "context_part, state_in: expected both or none, got "
            + ("state_in" if context_part is None else "context_part")
        )
    width = 2 * size
    if context_part is not None:
        if context_part.ndim != 2 or len(context_part) != batch or not context_part.numel():
            raise ValueError(
                f"context_part: expected shape [{batch}, X >= 1], got {list(context_part.shape)}"
            )
        width = context_part.shape[1]
    for name, weight, shape in (
        ("recurrent_input", weights.recurrent_input, (size, size)),
        ("recurrent_state", weights.recurrent_state, (size, size)),
        ("recurrent_bias", weights.recurrent_bias, (size,)),
        ("state_in", weights.state_in, (width, size)),
    ):
        if weight is not None:
            check_shape(name, weight, shape)
    if len(weights.blocks) != len(weights.biases):
        raise ValueError(
            f"biases: expected {len(weights.blocks)} as in blocks, got {len(weights.biases)}"
        )
    for i, (weight, bias) in enumerate(zip(weights.blocks, weights.biases, strict=True)):
        check_shape(f"blocks[{i}]", weight, (width, width))
        check_shape(f"biases[{i}]", bias, (width,))


def _launch(*arguments: Tensor) -> tuple[Tensor, Tensor]:
    from .kernel import launch_draft_step

    return launch_draft_step(*arguments)  # type: ignore[arg-type]


def _fake(
    tokens: Tensor,
    parents: Tensor,
    states: Tensor,
    context: Tensor,
    context_part: Tensor | None,
    *others: object,
) -> tuple[Tensor, Tensor]:
    (batch, width), size = tokens.shape, states.shape[2]
    out = 2 * size if context_part is None else context_part.shape[1]
    return states.new_empty((batch, width, size)), states.new_empty((batch, width, out))


_draft_step = register(
    "draft_step(Tensor tokens, Tensor parents, Tensor states, Tensor context, Tensor? context_part, Tensor embedding,"
    " Tensor? recurrent_input, Tensor? recurrent_state, Tensor? recurrent_bias, Tensor? state_in, Tensor[] blocks,"
    " Tensor[] biases, float? embed_scale) -> (Tensor states, Tensor features)",
    _launch,
    _fake,
)
