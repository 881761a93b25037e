"""ReDrafter: a recurrent model drafts beams behind the target's last hidden state (ReDrafter section 3).

    h (last accepted node) ──────────┬───────────┬──────────┐
    root ─► embed ─► state ─► blocks ┴► head ─► best W ─► states, blocks, head ─► best W …

Every beam is a path of the tree to verify. The draft model has no attention and no KV cache. Beyond the paper: only nodes
and steps that pay are drafted, a draft vocabulary makes the head small, and the head may be the target's behind a projection.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from specdec_kernels import (
    Beams,
    LMHeadTopK,
    beam_parents,
    beam_step,
    lm_head_beams,
)
from specdec_kernels.dispatch import chooses_kernel, host_may_look

from ..model.cpu_linear import prepack_linears
from ..model.model_state import check_plain
from ..model.target import Target
from ..state import State
from .parts.beams import hopeless, trace_back
from .parts.calibration import Calibration, calibration_of
from .parts.coupling import CANDIDATES, coupled
from .parts.redrafter_model import ReDrafterConfig, ReDrafterModel
from .protocol import Budget, Drafter, Proposals

__all__ = ["ReDrafter", "ReDrafterConfig", "ReDrafterModel"]

Rank = Callable[..., Tensor]
"""Turns log-probabilities and ids `[B, W, k]` into log-probabilities of being drawn."""


class Extent(NamedTuple):
    """Bounds of one beam search."""

    width: int
    """Beams that are kept, W."""
    length: int
    """Maximum number of steps."""
    least_score: float
    """Nodes with a lower score are not proposed."""
    least_to_go_on: float
    """The search ends if the summed probability of the beams, averaged over rows, is lower; 0: never."""


class ReDrafter(Drafter):
    """Drafts beams from the target's last hidden state."""

    def __init__(
        self, target: Target, model: ReDrafterModel, config: ReDrafterConfig | None = None
    ) -> None:
        """Attach a draft model to its target; prepacks its linear layers if the target's are prepacked.

        Args:
            target: the target model.
            model: moved to the target's dtype and device.
            config: draft settings in place of those of `model.config`.

        Raises:
            ValueError: if the model's width is not the target's, or its vocabulary.
        """
        self.config = config or model.config
        self.calibration: Calibration = calibration_of("redrafter")
        embedding = target.parts.embed_tokens
        check_plain("embedding", embedding, isinstance(embedding, nn.Embedding))
        # What it reads beside hidden states, and what the head reads.
        width = target.embedding.shape[1]
        if model.config.hidden_size != width:
            raise ValueError(
                f"hidden_size: expected the target's {width}, got {model.config.hidden_size}"
            )
        if model.vocabulary_size != target.config.vocab_size:
            raise ValueError(
                f"vocabulary_size: expected the target's {target.config.vocab_size}, got {model.vocabulary_size}"
            )
        if self.config.draft_length > model.config.trained_length:
            warnings.warn(
                f"draft_length: expected at most the {model.config.trained_length} tokens that the model was "
                f"trained for, got {self.config.draft_length}; the last ones will be guesses",
                stacklevel=2,
            )
        self.target = target
        self.model = model.to(target.device, target.dtype).eval()
        tied = model.config.tied_head
        ids = self.model.draft_vocabulary
        own = LMHeadTopK(self.model.output, id_map=ids, impl=target.impl)
        self.head = target.draft_head(ids) if tied else own
        if target.prepacked:
            prepack_linears(self.model)
            prepack_linears(self.head)

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Search beams behind each row's root (ReDrafter section 3.2)."""
        config = self.config
        extent = Extent(
            config.beam_width or budget.width,
            min(config.draft_length, budget.depth),
            budget.least_score(config.min_prob, self.calibration),
            budget.least_to_go_on(config.min_step_prob, self, self.calibration),
        )
        rank: Rank | None = None
        if state.sampling is not None:
            rank = partial(coupled, state=state, impl=self.target.impl)
        steps = self._search(state.roots, state.hidden[state.rows.ids], extent, rank)
        spent = budget.spent(self, len(steps))
        if not steps:
            return Proposals.none(len(state.rows.host), state.text.ids.device, spent)
        found = self._all_nodes(steps) if config.keep == "expanded" else self._paths(steps)
        return self._propose(*found, extent.least_score, spent)

    def _search(
        self, roots: Tensor, context: Tensor, extent: Extent, rank: Rank | None = None
    ) -> list[Beams]:
        """Run the draft steps; step i holds beams of i + 1 drafted tokens."""
        if extent.length < 1:
            return []
        step = self.model.step
        target = self.target
        part = step.context_part(context)
        states = step.initial_state(context)[:, None]  # [B, 1, E]
        # The first step has one beam.
        tokens = roots[:, None]
        scores = torch.zeros_like(tokens, dtype=torch.float32)
        parents = torch.zeros_like(tokens)
        steps: list[Beams] = []
        watched = host_may_look(roots)
        while len(steps) < extent.length:
            states, features = step.draft(
                tokens,
                parents,
                states,
                context,
                part,
                target.embedding,
                embed_scale=target.embed_scale,
                impl=target.impl,
            )
            here = partial(rank, depth=len(steps)) if rank is not None else None
            beams = self._next_beams(features, scores, extent.width, here)
            least = extent.least_score
            if watched and least > -math.inf and not (beams.scores >= least).any():
                break
            steps.append(beams)
            scores, parents, tokens = beams
            more = len(steps) < extent.length and watched
            if more and hopeless(scores, extent.least_to_go_on):
                break
        return steps

    def _next_beams(
        self, features: Tensor, scores: Tensor, beam_width: int, rank: Rank | None
    ) -> Beams:
        """Choose among all continuations of beams with features `[B, W, X]` and scores `[B, W]`."""
        config, head = self.config, self.head
        rows = self.model.head_input(features)
        whole = config.top_rule is None and rank is None
        if whole and chooses_kernel(self.target.impl, rows, head.linear.weight):
            return lm_head_beams(rows, head.weights, scores, beam_width)
        considered = beam_width if rank is None else CANDIDATES
        size = head.linear.out_features
        top = head(rows.flatten(0, 1), min(config.top_rule or considered, size))
        log_probs, ids = (x.reshape(*scores.shape, -1) for x in (top.log_probs, top.ids))
        if config.top_rule is not None:
            log_probs = log_probs.log_softmax(-1)
        if rank is not None:
            log_probs, best = rank(log_probs, ids).sort(stable=True, dim=-1, descending=True)
            ids = ids.gather(-1, best)
        kept = min(beam_width, size)
        return beam_step(
            scores,
            log_probs[..., :kept].contiguous(),
            ids[..., :kept].contiguous(),
            beam_width,
            impl=self.target.impl,
        )

    def _all_nodes(self, steps: list[Beams]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take every beam of every step, each continuing its parent of the step before; as `_propose` wants them."""
        parents = [torch.full_like(steps[0].parents, -1)]
        before = 0
        for earlier, beams in pairwise(steps):
            parents.append(beams.parents + before)
            before += earlier.tokens.shape[1]
        tokens = torch.cat([beams.tokens for beams in steps], 1)
        scores = torch.cat([beams.scores for beams in steps], 1)
        return tokens, torch.cat(parents, 1), scores, torch.zeros_like(tokens)

    def _paths(self, steps: list[Beams]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take the final beams, whole."""
        beams, scores = trace_back(steps)
        width, length = beams.shape[1:]
        source = torch.arange(width, device=beams.device).repeat_interleave(length)
        parents = beam_parents(beams)
        beams, scores, source = beams.flatten(1), scores.flatten(1), source.expand(len(beams), -1)
        return beams, parents, scores, source

    def _propose(
        self,
        tokens: Tensor,
        parents: Tensor,
        scores: Tensor,
        source: Tensor,
        least: float,
        spent: float,
    ) -> Proposals:
        return Proposals(tokens, parents, scores, scores >= least, source, spent=spent)


CONFIG, DRAFTER = ReDrafterConfig, ReDrafter


def new_module(
    config: ReDrafterConfig, vocabulary_size: int, draft_vocabulary: Tensor | None
) -> ReDrafterModel:
    """Create a model with random weights; the draft vocabulary `[Vd]` int64 is a buffer of it."""
    return ReDrafterModel(config, vocabulary_size, draft_vocabulary)


def join(
    target: Target, config: ReDrafterConfig, module: ReDrafterModel, draft_vocabulary: Tensor | None
) -> ReDrafter:
    """Create the drafter."""
    return ReDrafter(target, module, config)


def weights_of(drafter: ReDrafter) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint."""
    return dict(drafter.model.state_dict())
