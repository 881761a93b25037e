"""EAGLE-3: one decoder layer drafts a tree from the hidden states of several target layers (arXiv 2503.01840).

    hidden states of the accepted tokens ─► keys and values of the text, exact
    newest hidden state, root ─► draft layer ─► best W ─► draft layer ─► best W …

The continuations of all beams are candidates. The candidates with the highest cumulative probability are proposed. Keys
and values written while drafting are dropped; those of accepted tokens are computed from the target's hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec_kernels import LMHeadTopK
from specdec_kernels.dispatch import host_may_look

from ..costs.prices import MOST_WIDTH
from ..model.cache import Rows, TreeCache
from ..model.cpu_linear import prepack_linears
from ..model.passed import Listener, Verified
from ..model.target import Target
from ..state import State
from ..tree import Accepted, TokenTree
from .parts.beams import hopeless, keep_best
from .parts.calibration import Calibration, calibration_of
from .parts.coupling import CANDIDATES, coupled
from .parts.eagle3_model import Eagle3Config, Eagle3Model
from .parts.eagle3_tree import DraftTree
from .parts.redrafter_model import check_draft_vocabulary
from .protocol import Budget, Drafter, Proposals

__all__ = ["Eagle3Config", "Eagle3Drafter", "Eagle3Model"]


class Level(NamedTuple):
    """Candidates of one draft step: k continuations of each of W beams."""

    tokens: Tensor
    """`[B, W * k]` int64."""
    parents: Tensor
    """`[B, W * k]` int64, index of the parent among the candidates of all levels; -1 for the root."""
    scores: Tensor
    """`[B, W * k]` float32, cumulative log-probabilities."""


class Eagle3Drafter(Drafter):
    """Drafts a tree with one decoder layer, whose KV cache is an extra layer of the target's cache."""

    def __init__(
        self,
        target: Target,
        config: Eagle3Config,
        model: Eagle3Model,
        draft_vocabulary: Tensor | None = None,
    ) -> None:
        """Attach a draft model to its target; prepacks its linear layers if the target's are prepacked.

        Args:
            target: the target model.
            config: shape of the model and draft settings.
            model: moved to the target's dtype and device.
            draft_vocabulary: `[Vd]` int64, ascending, the tokens of its head's rows; None for all.

        Raises:
            ValueError: if the model does not fit the target, or the draft vocabulary is not ascending ids of the target's, one
                for each row of the head.
        """
        embedding, width = target.embedding.shape[1], target.config.hidden_size
        if model.embedding is None and config.hidden_size != embedding:
            raise ValueError(
                f"hidden_size: expected the target's {embedding}, got {config.hidden_size}"
            )
        if (found := config.target_size or config.hidden_size) != width:
            raise ValueError(f"target_size: expected the target's {width}, got {found}")
        tokens = target.config.vocab_size
        if model.embedding is not None and (found := model.embedding.num_embeddings) != tokens:
            raise ValueError(f"embedding: expected {tokens} rows, one for each token, got {found}")
        check_draft_vocabulary(draft_vocabulary, tokens)
        rows = tokens if draft_vocabulary is None else len(draft_vocabulary)
        if (found := model.output.out_features) != rows:
            raise ValueError(
                f"output: expected {rows} rows, one for each token that can be drafted, got {found}"
            )
        self.target, self.config = target, config
        self.calibration: Calibration = calibration_of("eagle3")
        self.model = model.to(target.device, target.dtype).eval()
        if draft_vocabulary is not None:
            draft_vocabulary = draft_vocabulary.to(target.device)
        self.head = LMHeadTopK(self.model.output, id_map=draft_vocabulary, impl=target.impl)
        if target.prepacked:
            prepack_linears(self.model)
            prepack_linears(self.head)
        self._layers = config.layers_of(len(target.layer_types))
        nodes = 1 + (config.width or MOST_WIDTH) * (config.depth - 1)
        self.listener = Listener(self._layers, self._read_prompt, nodes)

    def start(self, state: State) -> None:
        """Write the last pair of each prompt, which needs the first generated token."""
        self.join(state, state.rows)

    def join(self, state: State, rows: Rows) -> None:
        """Write the last pair of the prompts of rows that start."""
        if not rows.host:
            return
        cache = state.cache
        roots = TokenTree.chain(state.text.ids[rows.ids, cache.lengths[rows.ids]][:, None])
        now = cache.open(roots.ancestors, roots.depth, rows, behind=-1)
        inputs = {layer: x[rows.ids][:, None] for layer, x in state.inputs.items()}
        self._write(inputs, roots.tokens, now.positions, cache)

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Draft a tree behind each row's root."""
        config = self.config
        most = budget.nodes - 1
        width = min(config.width or min(budget.width, MOST_WIDTH), most)
        length = min(config.depth, budget.depth)
        if length < 1 or width < 1:
            return Proposals.none(len(state.rows.host), state.text.ids.device)
        levels = self._search(
            state,
            width,
            length,
            budget.least_to_go_on(config.min_step_prob, self, self.calibration),
        )
        tokens, parents, scores = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
        tokens, parents, scores = keep_best(tokens, parents, scores, most)
        least = budget.least_score(config.min_prob, self.calibration)
        return Proposals(
            tokens,
            parents,
            scores,
            scores >= least,
            torch.zeros_like(tokens),
            spent=budget.spent(self, len(levels)),
        )

    def observe(
        self, state: State, tree: TokenTree, accepted: Accepted, verified: Verified
    ) -> None:
        """Write keys and values of the accepted tokens, from the target's hidden states."""
        cache = state.cache
        now = cache.current  # the one that was verified: its slots are behind the text as it was
        assert now is not None
        looked = host_may_look(accepted.path)
        count = int(accepted.lengths.max()) + 1 if looked else tree.tokens.shape[1]
        nodes = accepted.path[:, :count].clamp(min=0)[..., None]
        positions = now.prefix_lens[:, None] + torch.arange(count, device=nodes.device)
        following = state.text.ids[state.rows.ids[:, None], positions + 1]
        inputs = {layer: x.take_along_dim(nodes, 1) for layer, x in verified.inputs.items()}
        self._write(inputs, following, positions, cache)

    def _read_prompt(
        self, inputs: Mapping[int, Tensor], following: Tensor, cache: TreeCache
    ) -> None:
        cache.drafter_kv_moves = False  # `observe` writes them
        assert cache.current is not None
        self._write(inputs, following, cache.current.positions, cache)

    def _write(
        self, inputs: Mapping[int, Tensor], following: Tensor, positions: Tensor, cache: TreeCache
    ) -> None:
        """Write keys and values of pairs into the first slots of the open pass; the other slots get zeros."""
        assert cache.current is not None
        joined = self.model.join(self._embed(following), self._fuse(inputs))
        rest = cache.current.positions.shape[1] - positions.shape[1]
        keys, values = self.model.keys_values(joined, positions)
        if rest:
            keys, values = (F.pad(x, (0, 0, 0, rest)) for x in (keys, values))
        cache.update(keys, values, cache.shape[0])

    def _embed(self, tokens: Tensor) -> Tensor:
        """Embed int64 tokens `[...]` to `[..., E]`, by the model's own embedding if it has one."""
        own = self.model.embedding
        embedded: Tensor = self.target.embed(tokens) if own is None else own(tokens)
        return embedded

    def _fuse(self, inputs: Mapping[int, Tensor]) -> Tensor:
        """Project the hidden states of the fused layers, `[..., E']` each, to `[..., E]`."""
        fused: Tensor = self.model.fuse(torch.cat([inputs[at] for at in self._layers], -1))
        return fused

    def _search(self, state: State, width: int, length: int, least_to_go_on: float) -> list[Level]:
        """Run the draft steps; level i holds candidates at depth i + 1."""
        tree, levels = DraftTree(self.model, state), list[Level]()
        tokens = state.roots[:, None]
        hidden = self._fuse({at: x[state.rows.ids][:, None] for at, x in state.inputs.items()})
        scores = torch.zeros(tokens.shape, device=tokens.device)
        before = parents = torch.full_like(tokens, -1)
        counted = 0
        while True:
            hidden = tree.add(self._embed(tokens), hidden, parents)
            log_probs, ids = self._likeliest(hidden, width, state, len(levels))
            totals = (scores[..., None] + log_probs).flatten(1)
            each = before.repeat_interleave(ids.shape[-1], 1)
            levels.append(Level(ids.flatten(1), each, totals))
            if len(levels) == length:
                return levels
            # The best are continued; ties go to the likelier beam.
            best = totals.sort(dim=1, descending=True, stable=True)
            scores, places = best.values[:, :width], best.indices[:, :width]
            if host_may_look(scores) and hopeless(scores, least_to_go_on):
                return levels
            parents = places.div(ids.shape[-1], rounding_mode="floor")
            tokens = levels[-1].tokens.gather(1, places)
            hidden = hidden.take_along_dim(parents[..., None], 1)
            before, counted = places + counted, counted + totals.shape[1]

    def _likeliest(
        self, hidden: Tensor, width: int, state: State, depth: int
    ) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and ids `[B, W, k]` of the likeliest tokens after states `[B, W, E]`, k up to `width`."""
        draws = state.sampling is not None
        rows, size = self.model.output_norm(hidden).flatten(0, 1), self.head.linear.out_features
        top = self.head(rows, min(CANDIDATES if draws else width, size))
        log_probs, ids = (x.unflatten(0, hidden.shape[:2]) for x in (top.log_probs, top.ids))
        if draws:
            ranked = coupled(log_probs, ids, state=state, depth=depth, impl=self.target.impl)
            log_probs, best = ranked.sort(stable=True, dim=-1, descending=True)
            ids = ids.gather(-1, best)
        return log_probs[..., :width], ids[..., :width]


CONFIG, DRAFTER = Eagle3Config, Eagle3Drafter


def new_module(
    config: Eagle3Config, vocabulary_size: int, draft_vocabulary: Tensor | None
) -> Eagle3Model:
    """Create a draft model with random weights."""
    size = vocabulary_size if draft_vocabulary is None else len(draft_vocabulary)
    return Eagle3Model(config, size, vocabulary_size)


def join(
    target: Target, config: Eagle3Config, module: Eagle3Model, draft_vocabulary: Tensor | None
) -> Eagle3Drafter:
    """Create the drafter; its draft vocabulary is `[Vd]` int64 ids, None for all tokens."""
    return Eagle3Drafter(target, config, module, draft_vocabulary)


def weights_of(drafter: Eagle3Drafter) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint."""
    ids = drafter.head.id_map
    return dict(drafter.model.state_dict()) | ({} if ids is None else {"draft_vocabulary": ids})
