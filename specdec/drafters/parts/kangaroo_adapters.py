"""Adapters between Kangaroo's exit layer and a head: the paper's, and those of its ablation.

    attention    x = h + O Attn(RMSNorm(h))                                    the paper's
    layer        x of attention, then x + down(SiLU(gate n) * up n), n = RMSNorm(x): a full decoder layer
    mlp          x = h + W2 SiLU(W1 RMSNorm(h))                                 no attention, so no keys and values
    none         x = h                                                          only the scale of the norm is trained

The head reads `y = RMSNorm(x)`. `attention` has a fused kernel; the others run as PyTorch modules.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specdec_kernels import EarlyExitAdapter, LMHeadTopK
from specdec_kernels.dispatch import Impl
from specdec_kernels.early_exit.reference import early_exit_step_reference

from .rms_norm import RMSNorm

ATTENTION, LAYER, MLP, NONE = ADAPTERS = ("attention", "layer", "mlp", "none")
OUTPUT = "output"
"""Module name of a separate head."""


class LayerAdapter(EarlyExitAdapter):
    """A full decoder layer: attention, norm and gated MLP."""

    def __init__(self, mlp_size: int, *shape: Any) -> None:
        """Create a layer with random weights.

        Args:
            mlp_size: width of the MLP.
            shape: arguments of `EarlyExitAdapter`.
        """
        super().__init__(*shape)
        width = self.hidden_size
        self.mlp_norm = RMSNorm(width, eps=self.rms_norm_eps)
        self.gate_proj = nn.Linear(width, mlp_size, bias=False)
        self.up_proj = nn.Linear(width, mlp_size, bias=False)
        self.down_proj = nn.Linear(mlp_size, width, bias=False)

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Compute the input of the head; arguments and result as in `EarlyExitAdapter.finish`."""
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
        """Draft one token per row; arguments as in `EarlyExitAdapter.step`, PyTorch modules on every device."""
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
    """An adapter without attention: an MLP, or a norm only."""

    def __init__(self, hidden_size: int, rms_norm_eps: float, *, mlp: bool) -> None:
        """Create an adapter with random weights.

        Args:
            hidden_size: E of the target.
            rms_norm_eps: epsilon of the norms.
            mlp: True for a norm and an MLP of two `E -> E` layers, False for none.
        """
        super().__init__()
        self.mlp = mlp
        if mlp:
            self.input_norm = RMSNorm(hidden_size, eps=rms_norm_eps)
            self.up_proj = nn.Linear(hidden_size, hidden_size, bias=False)
            self.down_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.output_norm = RMSNorm(hidden_size, eps=rms_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states `[..., E]` of the exit layer to the input of the head, `[..., E]`."""
        if self.mlp:
            hidden = hidden + self.down_proj(F.silu(self.up_proj(self.input_norm(hidden))))
        out: Tensor = self.output_norm(hidden)
        return out

    def forward_sequence(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run over whole texts, for training; arguments as in `EarlyExitAdapter.forward_sequence`, `mask` is not needed."""
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
        """Draft one token per row that has not stopped; stop rows below the threshold.

        Args:
            hidden: `[B, E]`, output of the exit layer.
            head: reads the adapter's output.
            stopped: `[B]` bool; written.
            tokens: `[B]` int64; written where a row has not stopped.
            confidence: `[B]` float32; likewise.
            eta: confidence threshold.
        """
        sure = head.confidence(self(hidden))
        tokens.copy_(torch.where(stopped, tokens, sure.tokens))
        confidence.copy_(torch.where(stopped, confidence, sure.confidence.float()))
        stopped.logical_or_(~(confidence >= eta))
