"""A smaller model drafts: any causal model with the target's vocabulary, a chain or the beams of a search.

    accepted tokens, root ─► small model ─► best W ─► small model ─► best W …
                               │ reads along, in a cache of its own

It is a second `Target`: its layers run as the target's do, certified likewise, and nothing of it is patched. Each step
of a draft is one pass of it. Where the target draws, tokens are ranked with its noise (`coupling`).

Scores are the model's own cumulative log-probabilities. In a union they are compared with those of other methods as
probabilities of being accepted; a model that is too sure of itself takes more of a tree than it earns.

Source: arXiv 2211.17192 for a model that drafts; the text is the target's here by exact comparison, not by rejection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec_kernels import Beams, beam_step
from specdec_kernels.dispatch import host_may_look

from ..load import follow_changes, load_target
from ..model.cache import Rows
from ..model.target import Target
from ..state import State
from .parts.beams import hopeless
from .parts.calibration import Calibration, calibration_of
from .parts.coupling import CANDIDATES, coupled
from .parts.model_reader import Reader
from .parts.ranges import check_between
from .protocol import Budget, Drafter, Proposals


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """How far and how wide to draft."""

    length: int = 5
    """Most tokens of a path, 1 to 16; as many passes of the small model."""
    width: int = 1
    """Paths that are followed at a time, 1 to 16; 1 drafts a chain."""
    min_prob: float | None = None
    """Probability under which a node is not worth verifying, 0 to 1; None for what this machine makes of it."""
    min_step_prob: float | None = None
    """Probability that a draft holds so far under which it ends, 0 to 1, None likewise; on CPUs, where looking costs nothing."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        check_between(self, 1, 16, "length", "width")
        check_between(self, 0, 1, "min_prob", "min_step_prob")


class ModelDrafter(Drafter):
    """Drafts with a second model."""

    def __init__(self, target: Target, small: Target, config: ModelConfig | None = None) -> None:
        """Join a model to a target.

        Args:
            target: whose text is drafted.
            small: on the same device, in any dtype; its vocabulary is the target's.
            config: how to draft.

        Raises:
            ValueError: if the model lies on another device or has another vocabulary.
        """
        if small.device != target.device:
            raise ValueError(f"model: expected it on {target.device}, got one on {small.device}")
        check_vocabulary(target, small)
        self.target, self.small = target, small
        self.config = config or ModelConfig()
        self.calibration: Calibration = calibration_of("model")

    def start(self, state: State) -> None:
        """Read the prompts, from where the session's text so far parts from them."""
        with torch.inference_mode(False):  # what is packed again is used elsewhere too
            follow_changes(self.small)
        reader: Reader | None = state.memory.get(self)
        if reader is None or not reader.reads_on(state):
            reader = state.memory[self] = Reader(self.small, state.cache, len(state.text.host))
        reader.start(state, self.config.length * self.config.width)

    def join(self, state: State, rows: Rows) -> None:
        """Read the prompts of rows that begin."""
        reader: Reader = state.memory[self]
        reader.join(state, rows)

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Read what was accepted, and search behind each row's root."""
        config, reader = self.config, state.memory[self]
        assert isinstance(reader, Reader)
        length = min(config.length, budget.depth, reader.room(state))
        width = min(config.width, budget.nodes - 1)
        if length < 1:
            return Proposals.none(len(state.rows.host), state.text.ids.device)
        watched = host_may_look(state.roots)
        enough = budget.least_to_go_on(config.min_step_prob, self, self.calibration)
        drafted = Draft.none(state)
        logits = reader.read(state)
        while True:
            beams = self._next_beams(logits, drafted.newest_scores, width, state, drafted.levels)
            drafted = drafted.add(beams)
            if drafted.levels == length or (watched and hopeless(beams.scores, enough)):
                break
            if width == 1:
                logits = reader.after_chain(
                    beams.tokens[:, 0], state.rows, behind=drafted.levels - 1
                )
            else:
                # All of it again: a pass sees what lies behind the text as one chain or not at all.
                logits = reader.after_tree(
                    drafted.tokens, drafted.parents, drafted.depth, state.rows, drafted.newest
                )
        return drafted.propose(
            budget.least_score(config.min_prob, self.calibration),
            reader.row_room(state),
            budget.spent(self, drafted.levels),
        )

    def _next_beams(
        self, logits: Tensor, scores: Tensor, width: int, state: State, depth: int
    ) -> Beams:
        """Choose among all continuations of W beams, from logits `[B, W, V]` and scores `[B, W]`."""
        logits = logits[..., : self.target.config.vocab_size]  # a padded head may have more
        draws = state.sampling is not None
        log_probs, ids = likeliest(logits, CANDIDATES if draws else width)
        if draws:
            ranked = coupled(log_probs, ids, state=state, depth=depth, impl=self.target.impl)
            log_probs, best = ranked.sort(stable=True, dim=-1, descending=True)
            ids = ids.gather(-1, best)
        kept = slice(min(width, ids.shape[-1]))
        log_probs, ids = (x[..., kept].contiguous() for x in (log_probs, ids))
        return beam_step(scores, log_probs, ids, width, impl=self.target.impl)


@dataclass(frozen=True, slots=True)
class Draft:
    """All beams of all steps so far, step by step; each continues one of the step before."""

    tokens: Tensor
    """`[B, K]` int64."""
    parents: Tensor
    """`[B, K]` int64, among these K; -1 for the root."""
    scores: Tensor
    """`[B, K]` float32, cumulative log-probabilities."""
    depth: Tensor
    """`[K]` int64, 0 for what follows the root."""
    newest: int
    """How many of them the last step added."""
    levels: int
    """Steps so far."""

    @classmethod
    def none(cls, state: State) -> Draft:
        """Begin with the roots alone."""
        ids = state.roots[:, None][:, :0]
        return cls(ids, ids, ids.float(), ids[0], 0, 0)

    @property
    def newest_scores(self) -> Tensor:
        """`[B, W]` float32, of the beams that go on; of the root at first."""
        if not self.levels:
            return torch.zeros(len(self.tokens), 1, device=self.tokens.device)
        return self.scores[:, -self.newest :]

    def add(self, beams: Beams) -> Draft:
        """Add a step's W beams."""
        first = self.tokens.shape[1] - self.newest  # of the beams that these continue
        parents = beams.parents + first if self.levels else torch.full_like(beams.parents, -1)
        depth = torch.full_like(beams.tokens[0], self.levels)
        return Draft(
            torch.cat([self.tokens, beams.tokens], 1),
            torch.cat([self.parents, parents], 1),
            torch.cat([self.scores, beams.scores], 1),
            torch.cat([self.depth, depth]),
            newest=beams.tokens.shape[1],
            levels=self.levels + 1,
        )

    def propose(self, least: float, room: Tensor, spent: float) -> Proposals:
        """Propose what has at least this score, and not deeper than each row's `room [B]`."""
        valid = (self.depth < room[:, None]) & (self.scores >= least)
        return Proposals(
            self.tokens,
            self.parents,
            self.scores,
            valid,
            torch.zeros_like(self.tokens),
            spent=spent,
        )


def likeliest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return float32 log-probabilities and int64 ids of the k likeliest tokens, `[B, W, k]`, fewer where V is less."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # The lowest id among equals, as the target takes it; `topk` leaves that open.
    best = logits.max(-1, keepdim=True) if k == 1 else logits.topk(min(k, logits.shape[-1]), dim=-1)
    return (best.values - logits.logsumexp(-1, keepdim=True)).float(), best.indices


def check_vocabulary(target: Target, small: Target) -> None:
    """Raise ValueError unless an id means the same token to both.

    Their tokenizers decide; where one has none, the sizes of their vocabularies.
    """
    kind = type(small.model).__name__
    if target.tokenizer is None or small.tokenizer is None:
        wanted, found = target.config.vocab_size, small.config.vocab_size
        if wanted != found:
            raise ValueError(
                f"model: expected the target's vocabulary of {wanted} tokens, got a {kind} with {found}"
            )
        return
    wanted, found = target.tokenizer.get_vocab(), small.tokenizer.get_vocab()
    if wanted == found:
        return
    token, _ = min(wanted.items() ^ found.items(), key=lambda item: item[::-1])
    here, there = (
        f"{len(known)} tokens, in which {token!r} is {known.get(token, 'none')}"
        for known in (wanted, found)
    )
    raise ValueError(
        f"model: expected the target's vocabulary of {here}, got a {kind} with {there}"
    )


def new_drafter(target: Target, name: str, **settings: Any) -> ModelDrafter:
    """Load a model and join it to a target.

    Args:
        target: whose text is drafted.
        name: an embedded model, a hub id or a folder; loaded in the target's dtype, on its device, prepacked like it.
        settings: fields of `ModelConfig`.

    Raises:
        MemoryError: if there is not enough of it.
        ValueError: if a setting is out of range, or the model cannot be loaded or has another vocabulary; names it.
    """
    config = ModelConfig(**settings)
    try:
        small = load_target(
            name, dtype=target.dtype, device=target.device, prepack=target.prepacked
        )
        return ModelDrafter(target, small, config)
    except (MemoryError, ValueError) as error:
        kind = MemoryError if isinstance(error, MemoryError) else ValueError
        raise kind(
            f"drafter: expected a model that can draft in 'model:{name}', got another ({error})"
        ) from error
