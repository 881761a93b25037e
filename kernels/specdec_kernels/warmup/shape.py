"""What decides which kernels a decode launches: sizes and settings, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class Heads(NamedTuple):
    """The heads of an attention layer."""

    query: int
    """H."""
    kv: int
    """G."""
    size: int
    """D."""


@dataclass(frozen=True, slots=True)
class HeadShape:
    """A head that a drafter reads; options as in `lm_head_topk`."""

    width: int
    """E of what it reads."""
    vocabulary: int
    """V, the target's or fewer."""
    bias: bool = False
    mapped: bool = False
    """Whether its ids are translated: those of a draft vocabulary."""
    logit_scale: float | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class BeamDraftShape:
    """A recurrent drafter, as `RecurrentDraftStep` takes it."""

    head: HeadShape
    exit_dim: int | None
    """X; None for 2E."""
    residual_blocks: int
    beam_width: int
    """W."""
    rnn: bool = True
    embed_scale: float | None = None
    candidates: int | None = None
    """How many of a beam's likeliest tokens are ranked anew; None where the head's order counts."""
    coupled: bool = False
    """Whether they are ranked by `coupled_log_probs`."""


@dataclass(frozen=True, slots=True)
class ExitDraftShape:
    """A drafter behind an exit layer, as `EarlyExitAdapter` takes it."""

    head: HeadShape
    heads: Heads
    rope_theta: float = 10000.0


@dataclass(frozen=True, slots=True)
class Draws:
    """How tokens are drawn, as `pick_tokens` takes it."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    dtype: torch.dtype | None = None
    """Of the logits; None for the target's."""


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """A decode: the target, how large a batch, a tree and a cache may be, and what drafts."""

    dtype: torch.dtype
    """Of weights and cache."""
    layers: int
    hidden_size: int
    """E."""
    vocabulary: int
    """V."""
    heads: Heads
    rows: int
    """Most rows of a batch."""
    nodes: int
    """Most nodes of a tree, 1 to 256."""
    slots: int
    """S, of a row of the cache."""
    prompt_chunk: int = 256
    """Most tokens of a prompt that are read in one pass, 1 to 256."""
    windows: tuple[int | None, ...] = (None,)
    """Sliding windows of the layers, each once; None where there is none."""
    softcap: float | None = None
    """Cap on attention scores."""
    copies: bool = False
    """Whether rows share prompts."""
    proposals: int = 0
    """Most proposals of a row in a round, 0 to 1024."""
    draws: Draws | None = None
    """None for the likeliest tokens."""
    beams: BeamDraftShape | None = None
    early_exit: ExitDraftShape | None = None
