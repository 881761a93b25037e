"""The recurrent draft model without its head, as a module for training and drafting."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..dispatch import Impl
from .ops import DraftStepWeights, check_draft_step, run_draft_step
from .reference import draft_features, gather_inputs, recurrent_state


class RecurrentDraftStep(nn.Module):
    """ReDrafter's recurrent cell and residual blocks (ReDrafter section 3.1).

    The first layer after `[context, state]` is stored as two halves, `context_in` and `state_in`; the first is computed
    once per round. `draft` runs a whole step in few launches; `forward` is for training.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        exit_dim: int | None = None,
        residual_blocks: int = 2,
        rnn: bool = True,
    ) -> None:
        """Create a model with random weights.

        Args:
            hidden_size: E, the target's hidden size.
            exit_dim: X, width of the residual blocks; None for 2E, another width adds a projection.
            residual_blocks: n, number of residual blocks.
            rnn: whether the state is recurrent; False for a running sum of embeddings.

        Raises:
            ValueError: if a size is out of range.
        """
        super().__init__()
        width = 2 * hidden_size if exit_dim is None else exit_dim
        for name, value, least in (
            ("hidden_size", hidden_size, 1), ("exit_dim", width, 1), ("residual_blocks", residual_blocks, 0)
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        self.hidden_size, self.exit_dim = hidden_size, width
        self.projected = width != 2 * hidden_size
        self.recurrent_input = nn.Linear(hidden_size, hidden_size, bias=False) if rnn else None
        self.recurrent_state = nn.Linear(hidden_size, hidden_size) if rnn else None
        first = self.projected or residual_blocks > 0
        self.context_in = nn.Linear(hidden_size, width) if first else None
        self.state_in = nn.Linear(hidden_size, width, bias=False) if first else None
        following = residual_blocks if self.projected else max(residual_blocks - 1, 0)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(following))

    def context_part(self, context: Tensor) -> Tensor | None:
        """Compute the first layer's part `[..., X]` from the target's hidden states `[..., E]`, once per round."""
        return None if self.context_in is None else self.context_in(context)

    def forward(
        self, embedded: Tensor, state: Tensor, context: Tensor, context_part: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run one step on one token per row.

        Args:
            embedded: `[..., E]`, the tokens' embeddings.
            state: `[..., E]`, the states before the tokens; zeros at the start.
            context: `[..., E]` or broadcastable, the target's hidden states.
            context_part: `[..., X]`, the result of `context_part`.

        Returns:
            The new states `[..., E]` and the features `[..., X]` for the head.
        """
        state = recurrent_state(embedded, state, self.recurrent_input, self.recurrent_state)
        features = draft_features(
            context, context_part, state, self.state_in, list(self.blocks), projected=self.projected
        )
        return state, features

    def draft(
        self,
        tokens: Tensor,
        parents: Tensor,
        states: Tensor,
        context: Tensor,
        context_part: Tensor | None,
        embedding: Tensor,
        *,
        embed_scale: float | None = None,
        impl: Impl = "auto",
    ) -> tuple[Tensor, Tensor]:
        """Run one step on one token per beam, with embeddings and states gathered by index.

        Without a kernel, the module's own layers run, which may be prepacked.

        Args:
            tokens: `[B, W]` int64; this and the others as in `draft_step`.
            parents: `[B, W]` int64.
            states: `[B, Wp, E]`.
            context: `[B, E]`.
            context_part: `[B, X]`, the result of `context_part`.
            embedding: `[V, E]`.
            embed_scale: factor of embeddings, or None.
            impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere).

        Returns:
            The new states `[B, W, E]` and the features `[B, W, X]` for the head.

        Raises:
            TypeError: as `draft_step` does.
            ValueError: as `draft_step` does.
        """
        weights = self.step_weights()
        arguments = (tokens, parents, states, context, context_part, embedding, weights)
        if check_draft_step(*arguments, impl):
            return run_draft_step(*arguments, embed_scale)
        embedded, states = gather_inputs(tokens, parents, states, embedding, embed_scale)
        part = None if context_part is None else context_part[:, None]
        return self(embedded, states, context[:, None], part)  # type: ignore[no-any-return]

    def step_weights(self) -> DraftStepWeights:
        """Return the weights in the form that `draft_step` takes."""
        cell, state_in = self.recurrent_state, self.state_in
        blocks = [block for block in self.blocks if isinstance(block, nn.Linear)]
        return DraftStepWeights(
            None if self.recurrent_input is None else self.recurrent_input.weight,
            None if cell is None else cell.weight,
            None if cell is None else cell.bias,
            None if state_in is None else state_in.weight,
            [block.weight for block in blocks],
            [block.bias for block in blocks],
        )

    def initial_state(self, like: Tensor) -> Tensor:
        """Return the state before the first token: zeros."""
        return torch.zeros_like(like)

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        return f"hidden_size={self.hidden_size}, exit_dim={self.exit_dim}"
