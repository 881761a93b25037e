"""The sizes and settings that determine which kernels a decode launches."""

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
    """A drafter's head; options as in `HeadWeights`."""

    width: int
    """E, width of its input."""
    vocabulary: int
    """V, at most the target's."""
    bias: bool = False
    mapped: bool = False
    """Whether it has an id map, for a draft vocabulary."""
    logit_scale: float | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class BeamDraftShape:
    """A recurrent drafter; fields as in `RecurrentDraftStep`."""

    head: HeadShape
    exit_dim: int | None
    """X; None for 2E."""
    residual_blocks: int
    beam_width: int
    """W."""
    rnn: bool = True
    embed_scale: float | None = None
    candidates: int | None = None
    """Number of a beam's most likely tokens that are ranked again; None if the head's order is used."""
    coupled: bool = False
    """Whether `coupled_log_probs` ranks them."""


@dataclass(frozen=True, slots=True)
class ExitDraftShape:
    """A drafter after an exit layer; fields as in `EarlyExitAdapter`."""

    head: HeadShape
    heads: Heads
    rope_theta: float = 10000.0


@dataclass(frozen=True, slots=True)
class Draws:
    """Sampling settings, as in `pick_tokens`."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    dtype: torch.dtype | None = None
    """Dtype of the logits; None for the target's."""


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """A decode: the target, the limits of batch, tree and cache, and the drafter."""

    dtype: torch.dtype
    """Dtype of weights and cache."""
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
    """S, slots per cache row."""
    prompt_chunk: int = 256
    """Most tokens of a prompt that are read in one pass, 1 to 256."""
    windows: tuple[int | None, ...] = (None,)
    """The layers' sliding windows, each once; None for full attention."""
    softcap: float | None = None
    """Cap on attention scores."""
    copies: bool = False
    """Whether rows share prompts."""
    proposals: int = 0
    """Most proposals of a row in a round, 0 to 1024."""
    draws: Draws | None = None
    """Sampling settings; None for greedy."""
    beams: BeamDraftShape | None = None
    early_exit: ExitDraftShape | None = None
