"""What may stand between Kangaroo's exit layer and a head: the paper's adapter, and those that it was compared with.

    attention    x = h + O Attn(RMSNorm(h))                                    the paper's
    layer        x of attention, then x + down(SiLU(gate n) * up n), n = RMSNorm(x): a whole layer
    mlp          x = h + W2 SiLU(W1 RMSNorm(h))                                 no attention, so no keys and values
    none         x = h                                                          a scale, and nothing else to learn

Behind all of them `y = RMSNorm(x)` is what a head reads. The first runs in kernels, the others by their layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specdec_kernels import EarlyExitAdapter, LMHeadTopK
from specdec_kernels.dispatch import Impl
from specdec_kernels.early_exit.reference import early_exit_step_reference, rms_norm

ATTENTION, LAYER, MLP, NONE = ADAPTERS = ("attention", "layer", "mlp", "none")
OUTPUT = "output"
"""What a head of the adapter's own is called among its modules."""


class Norm(nn.RMSNorm):
    """RMSNorm in the order of the authors' code: the scale multiplies what was rounded."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `[..., E]`."""
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)


class LayerAdapter(EarlyExitAdapter):
    """A whole transformer layer: behind the attention a norm and a gated MLP."""

    def __init__(self, mlp_size: int, *shape: Any) -> None:
        """Make a layer with random weights.

        Args:
            mlp_size: width of the MLP.
            shape: as `EarlyExitAdapter` takes it.
        """
        super().__init__(*shape)
        width = self.hidden_size
        self.mlp_norm = Norm(width, eps=self.rms_norm_eps)
        self.gate_proj = nn.Linear(width, mlp_size, bias=False)
        self.up_proj = nn.Linear(width, mlp_size, bias=False)
        self.down_proj = nn.Linear(mlp_size, width, bias=False)

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Compute what the head reads; arguments and result as of `EarlyExitAdapter.finish`."""
        x = hidden + self.o_proj(attended.flatten(2))
        normed = self.mlp_norm(x)
        x = x + self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))
        out: Tensor = self.output_norm(x)
        return out

    def step(
        self,
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
        eta: float,
        cache_rows: Tensor | None = None,
        appends: Tensor | None = None,
        impl: Impl = "auto",
    ) -> None:
        """Draft one token per row; as `EarlyExitAdapter.step`, by the layers' own calls on any device."""
        early_exit_step_reference(
            hidden,
            k_cache,
            v_cache,
            self.project,
            self.finish,
            head.confidence,
            prefix_lens=prefix_lens,
            positions=positions,
            stopped=stopped,
            tokens=tokens,
            confidence=confidence,
            cache_rows=cache_rows,
            appends=appends,
            eta=eta,
        )


class TokenAdapter(nn.Module):
    """Reads one token's hidden state and no other: an MLP, or nothing but a norm."""

    def __init__(self, hidden_size: int, rms_norm_eps: float, *, mlp: bool) -> None:
        """Make an adapter with random weights.

        Args:
            hidden_size: E, of the target.
            rms_norm_eps: added to mean squares.
            mlp: whether there is an MLP of two layers `E -> E`, with a norm before it.
        """
        super().__init__()
        self.mlp = mlp
        if mlp:
            self.input_norm = Norm(hidden_size, eps=rms_norm_eps)
            self.up_proj = nn.Linear(hidden_size, hidden_size, bias=False)
            self.down_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.output_norm = Norm(hidden_size, eps=rms_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute what the head reads, `[..., E]`, of hidden states `[..., E]` after the exit layer."""
        if self.mlp:
            hidden = hidden + self.down_proj(F.silu(self.up_proj(self.input_norm(hidden))))
        out: Tensor = self.output_norm(hidden)
        return out

    def forward_sequence(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run over whole texts, for training; as `EarlyExitAdapter.forward_sequence`, padding of no meaning."""
        out: Tensor = self(hidden)
        return out

    def step(
        self,
        hidden: Tensor,
        head: LMHeadTopK,
        *,
        stopped: Tensor,
        tokens: Tensor,
        confidence: Tensor,
        eta: float,
    ) -> None:
        """Draft one token per row that has not stopped, and stop those that are not sure.

        Args:
            hidden: `[B, E]`, after the exit layer.
            head: reads the output.
            stopped: `[B]` bool; written.
            tokens: `[B]` int64; written where a row has not stopped.
            confidence: `[B]` float32; likewise.
            eta: confidence under which a token is its row's last.
        """
        sure = head.confidence(self(hidden))
        tokens.copy_(torch.where(stopped, tokens, sure.tokens))
        confidence.copy_(torch.where(stopped, confidence, sure.confidence.float()))
        stopped.logical_or_(~(confidence >= eta))
