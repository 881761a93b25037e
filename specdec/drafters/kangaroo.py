"""Kangaroo: the target's first layers and a small adapter draft a chain until their confidence drops (section 3).

    root ─► layers[:l] ─► adapter ─► head ─► token ─► layers[:l] ─► adapter ─► head ─► token …
               │ verify goes on from here: layers[l:], for all nodes at once

The shallow layers write into the target's own KV cache, so verification reuses what drafting computed. The token whose
confidence ended the draft is verified too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specdec_kernels import EarlyExitAdapter, LMHeadTopK

from ..device_flag import flag_on
from ..model.cache import TreeCache
from ..model.cpu_linear import prepack_linears
from ..model.passed import Shallow, Tap
from ..model.target import Target
from ..state import State
from .parts.calibration import Calibration, calibration_of
from .parts.kangaroo_adapters import (
    ADAPTERS,
    ATTENTION,
    LAYER,
    MLP,
    OUTPUT,
    LayerAdapter,
    TokenAdapter,
)
from .parts.redrafter_model import check_draft_vocabulary
from .protocol import Budget, Drafter, Proposals

# Arguments of `EarlyExitAdapter`, in its order.
ADAPTER_SHAPE = ("hidden_size", "heads", "kv_heads", "head_dim", "rms_norm_eps", "rope_theta")
Adapter = EarlyExitAdapter | TokenAdapter


@dataclass(frozen=True, slots=True)
class KangarooConfig:
    """Shape of an adapter, its exit layer, and its stopping rule."""

    hidden_size: int
    """E, of the target."""
    heads: int
    """H, query heads of the adapter."""
    kv_heads: int
    """G, its key and value heads, a divisor of H."""
    head_dim: int
    """D, even."""
    exit_layer: int
    """Number of target layers used for drafting; 2 of 32 in the paper."""
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    """Base of the adapter's rotary frequencies; 10000 in the authors' code, whatever the target's is."""
    eta: float | None = None
    """Drafting stops after a token with a probability below this; 0.6 in the paper. Above 1: drafts of one token. None:
    computed from the cost table."""
    gamma: int = 6
    """Maximum draft length."""
    adapter: str = ATTENTION
    """Adapter between the exit layer and the head: the paper's `attention`, a full decoder `layer`, an `mlp`, or `none`."""
    own_head: bool = False
    """True for a separately trained head, False for the target's head."""
    mlp_size: int | None = None
    """Width of the MLP of `layer`; None for the other adapters."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        for name in ("hidden_size", "heads", "kv_heads", "exit_layer", "gamma"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads: expected a divisor of {self.heads} heads, got {self.kv_heads}"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim: expected an even number from 2 on, got {self.head_dim}")
        for name in ("rms_norm_eps", "rope_theta"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{name}: expected above 0, got {value}")
        if self.eta is not None and not self.eta >= 0:
            raise ValueError(f"eta: expected at least 0, got {self.eta}")
        if self.adapter not in ADAPTERS:
            raise ValueError(
                f"adapter: expected one of {', '.join(ADAPTERS)}, got {self.adapter!r}"
            )
        size, whole = self.mlp_size, self.adapter == LAYER
        if (size is None or size < 1) if whole else size is not None:
            wanted = "at least 1" if whole else f"None for {self.adapter}"
            raise ValueError(f"mlp_size: expected {wanted}, got {size}")

    @property
    def attends(self) -> bool:
        """Whether the adapter has attention, and therefore a KV cache."""
        return self.adapter in (ATTENTION, LAYER)

    def new_adapter(self, head_size: int | None = None) -> Adapter:
        """Create an adapter of this shape with random weights.

        Args:
            head_size: vocabulary size of its own head; None without one.
        """
        shape = tuple(getattr(self, name) for name in ADAPTER_SHAPE)
        adapter: Adapter
        if self.mlp_size is not None:
            adapter = LayerAdapter(self.mlp_size, *shape)
        elif self.adapter == ATTENTION:
            adapter = EarlyExitAdapter(*shape)
        else:
            adapter = TokenAdapter(self.hidden_size, self.rms_norm_eps, mlp=self.adapter == MLP)
        if self.own_head:
            assert head_size is not None
            adapter.add_module(OUTPUT, nn.Linear(self.hidden_size, head_size, bias=False))
        return adapter


class KangarooDrafter(Drafter):
    """Drafts with the target's first layers; cannot be part of a union."""

    def __init__(
        self,
        target: Target,
        config: KangarooConfig,
        adapter: Adapter,
        draft_vocabulary: Tensor | None = None,
    ) -> None:
        """Attach an adapter to its target; prepacks its linear layers if the target's are prepacked.

        Args:
            target: the target model.
            config: shape of the adapter and draft settings.
            adapter: moved to the target's dtype and device.
            draft_vocabulary: `[Vd]` int64, ascending, the only tokens it can draft; None for all.

        Raises:
            ValueError: if the adapter does not fit the target or the configuration, or the draft vocabulary is not
                ascending ids of the target's.
        """
        width, depth = target.config.hidden_size, len(target.layer_types)
        if config.hidden_size != width:
            raise ValueError(
                f"hidden_size: expected the target's {width}, got {config.hidden_size}"
            )
        if target.embedding.shape[1] != width:
            raise ValueError(
                f"target: expected a head as wide as the layers, {width}, got one of {target.embedding.shape[1]}"
            )
        if config.exit_layer >= depth:
            raise ValueError(
                f"exit_layer: expected 1 to {depth - 1} of the target's {depth} layers, got {config.exit_layer}"
            )
        for name in ADAPTER_SHAPE if config.attends else ():
            if (has := getattr(adapter, name)) != (wants := getattr(config, name)):
                raise ValueError(
                    f"adapter: expected {name} {wants} as in its configuration, got {has}"
                )
        check_draft_vocabulary(draft_vocabulary, target.config.vocab_size)
        self.target, self.config = target, config
        self.calibration: Calibration = calibration_of("kangaroo")
        self.adapter = adapter.to(target.device, target.dtype).eval()
        self.head = drafting_head(target, config, self.adapter, draft_vocabulary)
        if target.prepacked:
            prepack_linears(self.adapter)
            prepack_linears(self.head)
        self._layer = depth  # the cache keeps the adapter's keys and values behind those of the target's layers
        self.tap = Tap(config.exit_layer, self._read)

    def draft(self, state: State, budget: Budget) -> Proposals:
        """Draft token by token until every row falls below the confidence threshold (Kangaroo section 3.2)."""
        most = min(self.config.gamma, budget.depth, budget.nodes - 1)
        cache, rows, layers = state.cache, state.rows, self.config.exit_layer
        newest = state.roots
        tokens = newest.new_zeros(len(newest), most)
        confidence = torch.ones(tokens.shape, device=tokens.device)
        valid = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
        stopped = budget.row_depth < 1
        wrote = torch.ones_like(stopped)  # whose newest token is the root or was drafted a step ago
        nodes: list[Tensor] = []
        all_stopped = flag_on(tokens.device)
        eta = self._eta(budget)
        for step in range(most + 1):
            if all_stopped.seen():
                break  # late: the step before has been run for nothing, and has written what `_read` would
            if 0 < step < most:
                all_stopped.post(stopped.all())
            hidden = self.target.extend(newest, cache, rows, layers=layers, behind=step)
            nodes.append(hidden[:, :1])
            if step == most or all_stopped.seen():
                self._read(hidden, cache)  # the last token; the next round attends to it
                break
            drafts = ~stopped
            now = cache.current
            assert now is not None
            if isinstance(self.adapter, TokenAdapter):
                self.adapter.step(
                    hidden[:, 0],
                    self.head,
                    stopped=stopped,
                    tokens=tokens[:, step],
                    confidence=confidence[:, step],
                    eta=eta,
                )
            else:
                self.adapter.step(
                    hidden[:, 0],
                    *cache.drafter_layer(),
                    self.head,
                    prefix_lens=now.prefix_lens,
                    positions=now.positions[:, 0].clone(),
                    stopped=stopped,
                    tokens=tokens[:, step],
                    confidence=confidence[:, step],
                    eta=eta,
                    cache_rows=now.cache_rows,
                    appends=wrote,
                    impl=cache.impl,
                )
            # A row below the threshold keeps this token as its last; it continues as padding while other rows draft.
            valid[:, step] = wrote = drafts
            newest = torch.where(drafts, tokens[:, step], newest)
            stopped |= budget.row_depth <= step + 1
        # When a late flag is seen depends on time. Widths do not, and so neither do roundings: padding fills them up.
        drafted = most if all_stopped.late else len(nodes) - 1
        chain = torch.arange(drafted, device=tokens.device)
        tokens = tokens[:, :drafted]
        return Proposals(
            tokens=tokens,
            parents=(chain - 1).expand_as(tokens),
            scores=confidence[:, :drafted].log().cumsum(1),
            valid=valid[:, :drafted],
            source=torch.zeros_like(tokens),
            shallow=Shallow(
                layers, F.pad(torch.cat(nodes, 1), (0, 0, 0, drafted + 1 - len(nodes)))
            ),
            spent=budget.spent(self, drafted),
        )

    def _eta(self, budget: Budget) -> float:
        """Return the threshold: below it one more token does not pay for its draft step and its node."""
        if self.config.eta is not None:
            return self.config.eta
        step = budget.least_to_go_on(None, self, self.calibration)
        return step + budget.node_price / self.calibration.step_gain

    def _read(self, hidden: Tensor, cache: TreeCache) -> None:
        """Write keys and values of prompts and of last draft tokens, if the adapter has a KV cache."""
        if isinstance(self.adapter, TokenAdapter):
            return
        now = cache.current
        assert now is not None
        cache.update(*self.adapter.project_kv(hidden, now.positions), self._layer)


def drafting_head(
    target: Target, config: KangarooConfig, adapter: Adapter, draft_vocabulary: Tensor | None
) -> LMHeadTopK:
    """Return the head behind the adapter: its own, or the target's."""
    if not config.own_head:
        return target.draft_head(draft_vocabulary)
    if draft_vocabulary is not None:
        draft_vocabulary = draft_vocabulary.to(target.device)
    linear: Any = adapter.get_submodule(OUTPUT)
    return LMHeadTopK(linear, id_map=draft_vocabulary, impl=target.impl)


CONFIG, DRAFTER = KangarooConfig, KangarooDrafter


def new_module(
    config: KangarooConfig, vocabulary_size: int, draft_vocabulary: Tensor | None
) -> Adapter:
    """Create an adapter with random weights; its own head, if any, covers `[Vd]` int64 tokens, None for all."""
    return config.new_adapter(
        vocabulary_size if draft_vocabulary is None else len(draft_vocabulary)
    )


def join(
    target: Target,
    config: KangarooConfig,
    module: Adapter,
    draft_vocabulary: Tensor | None,
) -> KangarooDrafter:
    """Create the drafter; its draft vocabulary is `[Vd]` int64 ids, None for all tokens."""
    return KangarooDrafter(target, config, module, draft_vocabulary)


def weights_of(drafter: KangarooDrafter) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint."""
    ids = drafter.head.id_map
    return dict(drafter.adapter.state_dict()) | ({} if ids is None else {"draft_vocabulary": ids})
