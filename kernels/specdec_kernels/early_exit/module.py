"""Kangaroo's adapter as a module, for training on whole texts and drafting token by token."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..dispatch import Impl
from ..lm_head import LMHeadTopK
from ..lm_head.reference import sure_token, top_tokens
from .cpu import CpuSteps, early_exit_step_on_cpu, runs_here
from .ops import check_early_exit_step, run_early_exit_step
from .reference import (
    AdapterWeights,
    early_exit_step_reference,
    rms_norm,
    rotate,
    rotation,
)


class _RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)


class EarlyExitAdapter(nn.Module):
    """One attention block between the target's exit layer and its head (Kangaroo section 3.2).

    `step` drafts one token per row, head and stop rule included. Callers with a cache of their own use its parts:
    `project`, writing keys and values to the cache, `tree_attention`, `finish`. `project_kv` suffices for tokens whose
    next token is not drafted: prompts, and the last token of a draft.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rms_norm_eps: float = 1e-6,
        rope_theta: float = 10000.0,
    ) -> None:
        """Create an adapter with random weights.

        Args:
            hidden_size: E, the target's hidden size.
            heads: H, query heads.
            kv_heads: G, key and value heads; a divisor of H.
            head_dim: D, even.
            rms_norm_eps: added to mean squares.
            rope_theta: base of the rotary frequencies.

        Raises:
            ValueError: if a size is out of range.
        """
        super().__init__()
        for name, value in (("hidden_size", hidden_size), ("heads", heads), ("kv_heads", kv_heads)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if heads % kv_heads:
            raise ValueError(f"kv_heads: expected a divisor of {heads} heads, got {kv_heads}")
        if head_dim < 2 or head_dim % 2:
            raise ValueError(f"head_dim: expected an even number from 2 on, got {head_dim}")
        self.hidden_size = hidden_size
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.rms_norm_eps, self.rope_theta = rms_norm_eps, rope_theta
        self.input_norm = _RMSNorm(hidden_size, eps=rms_norm_eps)
        self.q_proj = nn.Linear(hidden_size, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, hidden_size, bias=False)
        self.output_norm = _RMSNorm(hidden_size, eps=rms_norm_eps)
        self._cpu_steps = CpuSteps()

    def project(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values of tokens.

        Args:
            hidden: `[B, N, E]`, hidden states after the exit layer.
            positions: `[B, N]` int64 or broadcastable, absolute positions.

        Returns:
            Queries `[B, N, H, D]` as `tree_attention` takes them; keys and values `[B, G, N, D]` as caches store them.
        """
        normed, angles = self.input_norm(hidden), self._rotation(hidden, positions)
        q = rearrange(self.q_proj(normed), "b n (h d) -> b n h d", d=self.head_dim)
        return rotate(q, *angles), *self._keys_values(normed, angles)

    def project_kv(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values only; arguments and results as in `project`."""
        return self._keys_values(self.input_norm(hidden), self._rotation(hidden, positions))

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Compute the head's input.

        Args:
            hidden: `[B, N, E]`, hidden states after the exit layer.
            attended: `[B, N, H, D]`, the result of attention.

        Returns:
            `[B, N, E]`.
        """
        x = hidden + self.o_proj(rearrange(attended, "b n h d -> b n (h d)"))
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
        """Draft one token per row that has not stopped, and stop rows with low confidence.

        Without a kernel, the module's own layers run, which may be prepacked; on a CPU "auto" runs them in few operators.

        Args:
            hidden: `[B, E]`, hidden states after the exit layer; this and the others as in `early_exit_step`.
            k_cache: `[rows, G, S, D]`; written.
            v_cache: like `k_cache`; written.
            head: the head after the adapter.
            prefix_lens: `[B]` int64.
            positions: `[B]` int64; written.
            stopped: `[B]` bool; written.
            tokens: `[B]` int64; written.
            confidence: `[B]` float32; written.
            eta: confidence below which a token is its row's last.
            cache_rows: `[B]` int64, or None.
            appends: `[B]` bool, or None.
            impl: "triton", "reference", or "auto" (the kernel on CUDA, the reference elsewhere).

        Raises:
            TypeError: as `early_exit_step` does.
            ValueError: as `early_exit_step` does.
        """
        model = (hidden, k_cache, v_cache, self.step_weights(), head.weights)
        rows: dict[str, Any] = {
            "prefix_lens": prefix_lens, "positions": positions, "stopped": stopped,
            "tokens": tokens, "confidence": confidence, "cache_rows": cache_rows, "appends": appends,
        }  # fmt: skip
        if check_early_exit_step(*model, rows, impl):
            run_early_exit_step(*model, rows, eta)
            return
        if impl == "auto" and runs_here(
            hidden, k_cache, v_cache, *self.parameters(), head.linear.weight
        ):
            buffers = self._cpu_steps.buffers(self, hidden)
            early_exit_step_on_cpu(self, buffers, hidden, k_cache, v_cache, head, **rows, eta=eta)
            return
        early_exit_step_reference(
            hidden,
            k_cache,
            v_cache,
            self.project,
            self.finish,
            lambda rows: sure_token(top_tokens(head.logits(rows), 1, head.id_map)),
            **rows,
            eta=eta,
        )

    def step_weights(self) -> AdapterWeights:
        """Return the weights in the form that `early_exit_step` takes."""
        return AdapterWeights(
            self.input_norm.weight,
            self.q_proj.weight,
            self.k_proj.weight,
            self.v_proj.weight,
            self.o_proj.weight,
            self.output_norm.weight,
            self.rope_theta,
            self.rms_norm_eps,
        )

    def forward_sequence(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run on whole texts at positions 0 to T - 1, for training.

        Args:
            hidden: `[B, T, E]`, hidden states after the exit layer.
            mask: `[B, T]` bool, False at padding, which must be on the right; None without padding. Padding may hold
                any values, also NaN.

        Returns:
            `[B, T, E]`, the head's input; undefined at padding.
        """
        if mask is not None:
            # The causal mask hides right padding from real tokens; zeros avoid 0 * NaN.
            hidden = hidden.masked_fill(~mask[..., None], 0)
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        q, k, v = self.project(hidden, positions)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads
        )  # [B, H, T, D]
        return self.finish(hidden, out.transpose(1, 2))

    def _rotation(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotation(positions, self.head_dim, self.rope_theta, hidden.dtype)

    def _keys_values(self, normed: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        k = rearrange(self.k_proj(normed), "b n (g d) -> b n g d", d=self.head_dim)
        v = rearrange(self.v_proj(normed), "b n (g d) -> b g n d", d=self.head_dim)
        return rotate(k, *angles).transpose(1, 2), v

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        return f"heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}, rope_theta={self.rope_theta}"
