"""Lean layers: decoder layers in few operators that replace transformers' layers after a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from specdec_kernels import ancestor_matrix, pack_bits
from specdec_kernels.decoder_layer import (
    Angles,
    Buffers,
    CpuDecoderLayer,
    LayerWeights,
    LinearWeights,
    PlainProduct,
    PrepackedProduct,
    can_prepack,
)
from specdec_kernels.decoder_layer.products import Product
from specdec_kernels.decoder_layer.weights import Rotation

from .cache import Rows
from .layer_parts import NotTakenApart, check_untouched, take_apart
from .memory import SIGNS
from .product_times import is_faster_prepacked
from .tree_pass import Attending, Observed, Pass, TreePass

if TYPE_CHECKING:
    from .target import Target

# Largest relative difference of a layer's addition to the residual stream from transformers': above rounding in another
# order, below the difference of any other function.
TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
ROTATIONS: tuple[Rotation | None, ...] = ("half", "interleaved", None)
# The probe: prompt length in tokens, then parents of a tree with two branches.
PROMPT, PARENTS = 6, (-1, 0, 0, 1)
NOT_TRIED = "not tried since it was changed or copied"
TOKENS = 4096
"""Tokens of all passes together whose buffers are kept; a pass with more tokens gets temporary buffers."""


class LeanLayers:
    """The lean layers of one target."""

    def __init__(self, count: int, *, prepacked: bool = False, reason: str | None = None) -> None:
        """Create the list with transformers' layers only.

        Args:
            count: number of layers.
            prepacked: whether lean layers get prepacked copies of their weights.
            reason: why all layers stay transformers'; None if lean ones are to be tried.
        """
        self.layers: list[CpuDecoderLayer | None] = [None] * count
        self.reasons = [reason] * count
        """Per layer, why it runs as transformers' layer; None for a lean layer."""
        self.prepacks, self.takes_changes = prepacked, reason in (None, NOT_TRIED)
        """Whether products are prepacked, and whether layers are tried again after the model has changed."""
        self._buffers: dict[tuple[Any, ...], Buffers] = {}

    @property
    def prepacked(self) -> bool:
        """Whether any lean layer has prepacked copies of its weights."""
        return any(layer is not None and layer.prepacked for layer in self.layers)

    def runs_prepacked(self, at: int) -> bool:
        """Return whether a layer is lean and has prepacked copies of its weights."""
        layer = self.layers[at]
        return layer is not None and layer.prepacked > 0

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the layers from copies; a copy creates its own from its weights before the next text."""
        return {
            "layers": [None] * len(self.layers),
            "reasons": [NOT_TRIED] * len(self.layers) if self.takes_changes else self.reasons,
            "prepacks": self.prepacks,
            "takes_changes": self.takes_changes,
            "_buffers": {},
        }

    @property
    def stale(self) -> bool:
        """Whether layers must be tried again: in a copy, or after an interrupted try."""
        return self.reasons[0] == NOT_TRIED

    def runs(self, at: int) -> bool:
        """Return whether a layer runs lean; with gradients, all run as transformers' layers."""
        return self.layers[at] is not None and not torch.is_grad_enabled()

    def run(self, at: int, hidden: Tensor, now: Pass, angles: Any, kind: Any) -> Tensor:
        """Run a layer on `[B N, E]`; `angles` are the model's cosines and sines, or None."""
        lean = self.layers[at]
        assert lean is not None
        layer = lean.layer
        turned = None
        if layer.rotation is not None:
            key = kind, layer.rotation
            if key not in now.angles:
                cos, sin = angles
                now.angles[key] = Angles.of(cos, sin, layer.rotation)
            turned = now.angles[key]
        now.windows[at] = layer.window
        return lean(hidden, at, turned, self._buffers_for(layer, hidden, now, turned), now)

    def _buffers_for(
        self, layer: LayerWeights, hidden: Tensor, now: Pass, angles: Angles | None
    ) -> Buffers:
        rotary = layer.head_dim if angles is None else angles.cos.shape[-1]
        shape = *now.positions.shape, hidden.shape[-1]
        key = *shape[:2], rotary, layer.rotation, layer.heads, layer.kv_heads
        found = self._buffers.get(key)
        if found is None:
            if (
                sum(rows * nodes for rows, nodes, *_ in self._buffers) + shape[0] * shape[1]
                > TOKENS
            ):
                self._buffers.clear()
            # Plain tensors, as passes write them with and without inference mode.
            with torch.inference_mode(False), torch.no_grad():
                like = torch.empty(shape, dtype=hidden.dtype)
                found = self._buffers[key] = Buffers(layer, like, rotary)
        return found


@torch.inference_mode()
def lean_layers(target: Target, *, prepack: bool) -> None:
    """Create lean layers, compare each with transformers' layer on the same inputs, and set `target.lean`.

    Args:
        target: a target on a CPU.
        prepack: whether products get copies of their weights in oneDNN's layout.
    """
    # Until this succeeds, transformers' layers run; after a failure the next text tries again.
    target.lean = LeanLayers(len(target.parts.layers), prepacked=prepack, reason=NOT_TRIED)
    prepack = prepack and can_prepack(target.dtype)
    found = LeanLayers(len(target.parts.layers), prepacked=prepack)
    touched = [_touched(layer) for layer in target.parts.layers]
    # Hooks must not see the probe's tokens.
    probe = _Probe(target, alone=any(touched))
    for at, reason in enumerate(touched):
        if reason is not None:
            found.reasons[at] = reason
            continue
        asked = probe.run_library(at)
        nearest = torch.inf
        for rotation in ROTATIONS:
            try:
                if asked is None:
                    raise NotTakenApart("it does not attend by the attention interface")
                weights = take_apart(target.parts.layers[at], asked, rotation)
            except NotTakenApart as reason:
                found.reasons[at] = str(reason)
                break
            found.layers[at] = CpuDecoderLayer(weights, prepacked if prepack else PlainProduct)
            try:
                distance = probe.distance(at, found)
            except (IndexError, RuntimeError, TypeError, ValueError) as error:
                if any(sign in str(error) for sign in SIGNS):  # out of memory
                    raise
                found.layers[at] = None
                found.reasons[at] = f"ours fails: {error}".splitlines()[0]
                break
            if distance <= TOLERANCE[target.dtype]:
                found.reasons[at] = None
                break
            nearest = min(nearest, distance)
            found.layers[at] = None
            found.reasons[at] = f"it differs from the library's by {nearest:.0e}"
        probe.go_on()
    target.lean = found


def prepacked(weights: LinearWeights) -> Product:
    """Prepack a product's weights if that is faster on this machine."""
    parts = weights.weights
    shape = sum(len(part) for part in parts), parts[0].shape[1]
    faster = is_faster_prepacked(shape, parts[0].dtype)
    return PrepackedProduct(weights) if faster else PlainProduct(weights)


def _touched(layer: nn.Module) -> str | None:
    try:
        check_untouched(layer)
    except NotTakenApart as reason:
        return str(reason)
    return None


class _Probe:
    """Runs probe tokens through transformers' layers, and compares lean layers on the same hidden states."""

    def __init__(self, target: Target, *, alone: bool) -> None:
        """Read two prompts and open trees after them; with `alone`, open trees without prompts."""
        # At position 0 and near the limit: some layers change with the position, such as by scaling queries.
        self.moves = (0, max(0, target.position_limit - PROMPT - len(PARENTS)))
        self.target, self.rows = target, Rows.first(2, target.device)
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(0, target.config.vocab_size, (2, PROMPT), generator=generator)
        self.cache: Any = target.new_cache(rows=2, capacity=PROMPT, tree_capacity=len(PARENTS))
        if not alone:
            target.prefill(ids, [PROMPT, PROMPT - 2], self.cache)
        ancestors = ancestor_matrix(torch.tensor([PARENTS])).expand(2, -1, -1)
        self.tree = pack_bits(ancestors), ancestors.sum(-1) - 1
        self.hidden = target.embed(ids[:, : len(PARENTS)])

    def run_library(self, at: int) -> Attending | None:
        """Run transformers' layer after the prompts and near the position limit; return how it attended."""
        self.own: list[tuple[Tensor, Tensor]] = []
        for move in self.moves[::-1]:
            seen = Observed(self._open(move))
            self.cache.current = seen
            out = self.target.run_layers(self.hidden, self.cache, at, at + 1)
            self.own.insert(0, (out, self.cache.kv[at].clone()))
        return seen.asked

    def _open(self, move: int) -> TreePass:
        """Open a pass over the trees, at positions shifted by `move`."""
        now: TreePass = self.cache.open(*self.tree, self.rows)
        now.positions = now.positions + move
        return now

    def distance(self, at: int, lean: LeanLayers) -> float:
        """Run the lean layer on the same input; return how far its addition, keys and values are from transformers'."""
        pairs = []
        for move, (own, kv) in zip(self.moves, self.own, strict=True):
            self._open(move)
            ours = self.target.run_layers(self.hidden, self.cache, at, at + 1, lean=lean)
            pairs += [(ours - self.hidden, own - self.hidden), (self.cache.kv[at].clone(), kv)]
        return max(float((a - b).double().norm() / b.double().norm()) for a, b in pairs)

    def go_on(self) -> None:
        """Use the output of transformers' layer as the next layer's input."""
        self.hidden = self.own[0][0]
