"""Medusa: heads on the target's last hidden state, one per position ahead (Medusa section 2.1).

    h (last accepted node) ─┬─► head 1 ─► what follows the root
                            ├─► head 2 ─► what follows that
                            └─► head T ─► …        paths of their best tokens ─► tree

One forward of all heads is the whole draft. The heads are independent, so the score of a path is the sum of its tokens'
log-probabilities. Beyond the paper: the tree is chosen per round, from the likeliest paths that pay on this machine.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from specdec_kernels import LMHeadTopK

from ..model.cpu_linear import prepack_linears
from ..model.target import Target
from ..state import State
from .parts.calibration import Calibration, calibration_of
from .parts.coupling import CANDIDATES, coupled
from .parts.medusa_model import MedusaConfig, MedusaModel
from .parts.medusa_trees import Paths, contenders, likeliest, whole
from .protocol import Budget, Drafter, Proposals

__all__ = ["MedusaConfig", "MedusaDrafter", "MedusaModel"]


class MedusaDrafter(Drafter):
    """Drafts a tree from the target's last hidden state in one step."""

    def __init__(
        self, target: Target, model: MedusaModel, config: MedusaConfig | None = None
    ) -> None:
        """Attach heads to their target; prepacks their linear layers if the target's are prepacked.

        Args:
            target: the target model.
            model: moved to the target's dtype and device.
            config: draft settings in place of those of `model.config`.

        Raises:
            ValueError: if the model's width is not the target's, or its vocabulary, or a static tree wants more tokens
                of a head than it has.
        """
        self.config = config or model.config
        self.calibration: Calibration = calibration_of("medusa")
        width = target.embedding.shape[1]  # what the target's head reads
        if model.config.hidden_size != width:
            raise ValueError(
                f"hidden_size: expected the target's {width}, got {model.config.hidden_size}"
            )
        if model.vocabulary_size != target.config.vocab_size:
            raise ValueError(
                f"vocabulary_size: expected the target's {target.config.vocab_size}, got {model.vocabulary_size}"
            )
        self.target = target
        self.model = model.to(target.device, target.dtype).eval()
        self.heads = heads_of(target, self.model)
        size = self.heads[0].linear.out_features
        paths = self.config.paths
        self.ranks = min(self.config.ranks, size)
        """Best tokens per head from which a tree is built."""
        if paths is not None:
            self.ranks = 1 + max(max(path) for path in paths)
            if self.ranks > size:
                raise ValueError(
                    f"tree: expected ranks below the {size} tokens of a head, got {self.ranks - 1}"
                )
        if target.prepacked:
            prepack_linears(self.model)
            for head in self.heads:
                prepack_linears(head)
        self._paths: dict[tuple[int, int], Paths] = {}

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Run all heads and propose the best paths of their tokens."""
        config, device = self.config, state.text.ids.device
        length = min(config.draft_length or config.heads, budget.depth)
        nodes = budget.nodes - 1
        if min(length, nodes) < 1:
            return Proposals.none(len(state.rows.host), device)
        log_probs, ids = self._best_tokens(state, length)
        paths = self._table(nodes, length)
        static = config.paths is not None
        chosen = whole(paths, log_probs) if static else likeliest(paths, log_probs, nodes)
        least = budget.least_score(config.min_prob, self.calibration)
        if static and config.min_prob is None:
            least = -math.inf
        return Proposals(
            tokens=ids.flatten(1).gather(1, chosen.last),
            parents=chosen.parents,
            scores=chosen.scores,
            valid=chosen.scores >= least,
            source=torch.zeros_like(chosen.last),
            spent=budget.spent(self),
        )

    def _best_tokens(self, state: State, length: int) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and ids `[B, length, k]` of each head's best tokens, the best first.

        With sampling, they are ranked by the log-probability of being drawn with the target's noise.
        """
        log_probs, ids = self.top_tokens(
            state.hidden[state.rows.ids],
            length,
            self.ranks if state.sampling is None else max(CANDIDATES, self.ranks),
        )
        if state.sampling is None:
            return log_probs, ids
        drawn = [
            coupled(
                log_probs[:, depth, None],
                ids[:, depth, None],
                state=state,
                depth=depth,
                impl=self.target.impl,
            )
            for depth in range(length)
        ]
        log_probs, best = torch.cat(drawn, 1).sort(stable=True, dim=-1, descending=True)
        return log_probs[..., : self.ranks], ids.gather(-1, best[..., : self.ranks])

    def top_tokens(self, hidden: Tensor, length: int, k: int) -> tuple[Tensor, Tensor]:
        """Compute the likeliest tokens of the first heads.

        Args:
            hidden: `[B, E]`, the target's last hidden states.
            length: how many heads, 1 to T.
            k: tokens per head, at most the size of its vocabulary.

        Returns:
            Log-probabilities `[B, length, k]` float32 and ids `[B, length, k]` int64, the best first.
        """
        read = self.model(hidden, length)  # [length, B, E]
        k = min(k, self.heads[0].linear.out_features)
        # If all share one output head, their rows go through it in one call.
        rows = read.flatten(0, 1)[None] if len(self.heads) == 1 else read
        tops = [head(x, k) for head, x in zip(self.heads, rows, strict=False)]
        log_probs, ids = (
            torch.cat(part).view(length, -1, k).transpose(0, 1)
            for part in ([top.log_probs for top in tops], [top.ids for top in tops])
        )
        return log_probs, ids

    def _table(self, nodes: int, length: int) -> Paths:
        """Return the candidate paths of a tree with `nodes` nodes and this depth; computed once."""
        static = self.config.paths
        key = (0 if static is not None else nodes, length)
        if key not in self._paths:
            if static is not None:
                paths = [path for path in static if len(path) <= length]
            else:
                paths = contenders(nodes, self.ranks, length)
            device = self.target.device
            self._paths[key] = Paths.of(paths, heads=length, ranks=self.ranks, device=device)
        return self._paths[key]


def heads_of(target: Target, model: MedusaModel) -> list[LMHeadTopK]:
    """Return the output heads: one per Medusa head, or the target's for all."""
    ids, impl = model.draft_vocabulary, target.impl
    if model.config.output != "own":
        return [target.draft_head(ids)]
    return [
        LMHeadTopK(head.output, id_map=ids, impl=impl)  # type: ignore[arg-type]
        for head in model.heads
    ]


CONFIG, DRAFTER = MedusaConfig, MedusaDrafter


def new_module(
    config: MedusaConfig, vocabulary_size: int, draft_vocabulary: Tensor | None
) -> MedusaModel:
    """Create heads with random weights; the draft vocabulary `[Vd]` int64 is a buffer of the model."""
    return MedusaModel(config, vocabulary_size, draft_vocabulary)


def join(
    target: Target, config: MedusaConfig, module: MedusaModel, draft_vocabulary: Tensor | None
) -> MedusaDrafter:
    """Create the drafter."""
    return MedusaDrafter(target, module, config)


def weights_of(drafter: MedusaDrafter) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint."""
    return dict(drafter.model.state_dict())
