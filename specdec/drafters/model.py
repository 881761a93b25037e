"""Draft model: a smaller causal model with the target's vocabulary drafts a chain, or beams.

    accepted tokens, root ─► draft model ─► best W ─► draft model ─► best W …
                               │ reads the text, with a KV cache of its own

The draft model is loaded as a second `Target`: it is certified in the same way and not patched. Each step of a draft is
one forward pass. When the target samples, tokens are ranked with the target's noise (`coupling`).

Scores are the model's cumulative log-probabilities. A union compares them with other methods' scores as probabilities of
acceptance, so an overconfident model takes more of the tree than it earns.

Source: arXiv 2211.17192 for drafting with a model; here tokens are accepted by exact comparison, not by rejection
sampling.
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
    """Settings of a draft model."""

    length: int = 5
    """Most tokens per path, 1 to 16; each takes one pass of the draft model."""
    width: int = 1
    """Beams, 1 to 16; 1 drafts a chain."""
    min_prob: float | None = None
    """Least acceptance probability of a proposed node, 0 to 1; None derives it from the cost table."""
    min_step_prob: float | None = None
    """A draft ends when its beams together have less probability, 0 to 1; None as above. Used on CPUs only."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        check_between(self, 1, 16, "length", "width")
        check_between(self, 0, 1, "min_prob", "min_step_prob")


class ModelDrafter(Drafter):
    """Drafts with a second, smaller model."""

    def __init__(self, target: Target, small: Target, config: ModelConfig | None = None) -> None:
        """Create a drafter.

        Args:
            target: the target.
            small: the draft model, on the same device and with the same vocabulary, in any dtype.
            config: settings; None for the defaults.

        Raises:
            ValueError: if the draft model is on another device or has another vocabulary.
        """
        if small.device != target.device:
            raise ValueError(f"model: expected it on {target.device}, got one on {small.device}")
        check_vocabulary(target, small)
        self.target, self.small = target, small
        self.config = config or ModelConfig()
        self.calibration: Calibration = calibration_of("model")

    def start(self, state: State) -> None:
        """Read the prompts, from the first token that differs from the session's earlier text."""
        with torch.inference_mode(
            False
        ):  # weights packed here are also used outside inference mode
            follow_changes(self.small)
        reader: Reader | None = state.memory.get(self)
        if reader is None or not reader.reads_on(state):
            reader = state.memory[self] = Reader(self.small, state.cache, len(state.text.host))
        reader.start(state, self.config.length * self.config.width)

    def join(self, state: State, rows: Rows) -> None:
        """Read the prompts of rows that start."""
        reader: Reader = state.memory[self]
        reader.join(state, rows)

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Read the accepted tokens, and draft after each row's root."""
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
                # The whole draft again: a pass sees uncommitted nodes either as one chain or not at all.
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
        """Choose the best continuations of W beams from logits `[B, W, V]` and scores `[B, W]`."""
        logits = logits[..., : self.target.config.vocab_size]  # a padded head has more columns
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
    """All beams of all steps so far, in order; each continues a beam of the step before."""

    tokens: Tensor
    """`[B, K]` int64."""
    parents: Tensor
    """`[B, K]` int64, index of each beam's predecessor; -1 for the root."""
    scores: Tensor
    """`[B, K]` float32, cumulative log-probabilities."""
    depth: Tensor
    """`[K]` int64, 0 for tokens that follow the root."""
    newest: int
    """Number of beams that the last step added."""
    levels: int
    """Number of steps so far."""

    @classmethod
    def none(cls, state: State) -> Draft:
        """Return an empty draft, of roots only."""
        ids = state.roots[:, None][:, :0]
        return cls(ids, ids, ids.float(), ids[0], 0, 0)

    @property
    def newest_scores(self) -> Tensor:
        """`[B, W]` float32, scores of the last step's beams; zeros before the first step."""
        if not self.levels:
            return torch.zeros(len(self.tokens), 1, device=self.tokens.device)
        return self.scores[:, -self.newest :]

    def add(self, beams: Beams) -> Draft:
        """Add a step's W beams."""
        first = self.tokens.shape[1] - self.newest  # index of the first beam that these continue
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
        """Propose the tokens with at least this score, down to each row's depth `room [B]`."""
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
    """Return float32 log-probabilities and int64 ids of the min(k, V) most likely tokens, `[B, W, k]`."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # `max` takes the lowest id among equals, as the target does; `topk` does not specify it.
    best = logits.max(-1, keepdim=True) if k == 1 else logits.topk(min(k, logits.shape[-1]), dim=-1)
    return (best.values - logits.logsumexp(-1, keepdim=True)).float(), best.indices


def check_vocabulary(target: Target, small: Target) -> None:
    """Raise ValueError unless both models map ids to the same tokens.

    Compares the tokenizers; if one model has none, the sizes of the vocabularies.
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
    """Load a draft model.

    Args:
        target: the target.
        name: an embedded model, a hub id or a folder. It is loaded in the target's dtype, on its device, and prepacked
            if the target is.
        settings: fields of `ModelConfig`.

    Raises:
        MemoryError: if memory runs out.
        ValueError: naming the model or setting, if a setting is out of range, or the model cannot be loaded or has
            another vocabulary.
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
            f"drafter: expected a model that can draft in 'model:{name}', got one that cannot ({error})"
        ) from error
