"""`Target`: a Hugging Face causal language model that verifies a whole tree in one pass.

The model's own layers run with a `TreeCache` and a registered attention function. The model is not copied or patched;
between passes it behaves as before.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec_kernels import LMHeadTopK
from specdec_kernels.dispatch import Impl

from ..tree import TokenTree
from .attention import tree_attention_in
from .cache import CACHE_NAME, CACHE_NAMES, AttendingCache, Rows, TreeCache
from .cpu_linear import PrepackedLinear, prepack_linears
from .full_precision import full_precision_sums
from .lean_layers import LeanLayers
from .model_state import ModelState, check_mode, check_placement
from .parts import draft_head, find_parts, position_limit
from .passed import Listener, Shallow, SideNodes, Tap, Verified, pass_nodes
from .tree_pass import Pass

PREFILL_CHUNK = 256


class Target:
    """A causal language model as embedding, layers and head, with a KV cache for trees."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any = None, *, exact: bool = False
    ) -> None:
        """Wrap a model in evaluation mode.

        Use `load_target` instead: it also compares the target with the model's own forward.

        Args:
            model: a decoder whose parts `find_parts` finds, with a head.
            tokenizer: the model's tokenizer, or None.
            exact: keep keys and values in float64 and run at least two rows, so that in bf16 a node's result does
                not depend on the other nodes of the pass.

        Raises:
            ValueError: if the model lacks a part or has an unknown one, is in training mode, offloaded or on several
                devices, or `exact` is set on a device without float64.
        """
        check_placement(model)
        parts = find_parts(model)
        check_mode(model)
        if exact and model.device.type == "mps":
            raise ValueError("exact: expected a device with float64, got mps")
        self.model, self.parts, self.tokenizer = model, parts, tokenizer
        self.state = ModelState.of(model)
        """The last snapshot of the model."""
        self.changes = 0
        """Number of changes of weights, adapters or threads so far; a cache of an earlier number is stale."""
        self.config: Any = parts.decoder.config
        self.exact = exact
        self.lean: LeanLayers | None = None
        """Lean layers, from `lean_layers`; None if all layers run as transformers'."""
        self.drafters: dict[str, Any] = {}
        """Drafters loaded by name, kept for later calls."""
        self.costs: dict[int, Any] = {}
        """Cost tables by the number of threads."""
        self.device, self.dtype = model.device, model.dtype
        self.layer_types = parts.layer_types
        self.position_limit = position_limit(parts)
        self.impl: Impl = "reference" if self.dtype == torch.float64 else "auto"
        """Implementation of ops outside the model; float64 has no kernel."""
        self.embed_scale = parts.scaling.of_rows
        """Factor for rows of `embedding`."""
        options = inspect.signature(parts.layers[0].forward).parameters
        names = (*CACHE_NAMES, "layer_past")
        # Wrapped layers may hide their options.
        self._cache_option = next((name for name in names if name in options), CACHE_NAME)
        rotary: Any = parts.rotary
        self._rotary_by_type = (
            rotary is not None and "layer_type" in inspect.signature(rotary.forward).parameters
        )

    @property
    def embedding(self) -> Tensor:
        """The embedding's weight `[V, E]`; its rows times `embed_scale` are what `embed` returns."""
        weight: Tensor = self.parts.embed_tokens.weight  # type: ignore[assignment]
        return weight

    def prepare(self) -> int:
        """Prepack the linear layers of a CPU model that run as transformers' layers.

        Returns:
            The number of layers prepacked.
        """
        if self.device.type != "cpu":
            return 0
        ours = [] if self.lean is None else self.lean.layers
        lean = [layer for layer, mine in zip(self.parts.layers, ours, strict=False) if mine]
        return prepack_linears(self.model, apart=lean)

    def new_cache(
        self, *, rows: int, capacity: int, tree_capacity: int, texts: int | None = None
    ) -> TreeCache:
        """Create an empty cache for this model; arguments as in `TreeCache`."""
        return TreeCache(
            layers=len(self.parts.layers),
            rows=rows,
            capacity=capacity,
            # An exact pass has at least two rows; the second may be padding.
            tree_capacity=max(tree_capacity, 2),
            dtype=torch.float64 if self.exact else self.dtype,
            device=self.device,
            texts=texts,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Embed int64 tokens `[...]`; returns `[..., E]` without position embeddings, which `run_layers` adds."""
        hidden: Tensor = self.parts.embed_tokens(tokens)
        factor = self.parts.scaling.first_hidden
        return hidden if factor is None else hidden * factor

    def run_layers(
        self,
        hidden: Tensor,
        cache: AttendingCache,
        first: int = 0,
        end: int | None = None,
        *,
        lean: LeanLayers | None = None,
    ) -> Tensor:
        """Run layers `first` to `end - 1` on the nodes of the cache's current pass.

        The shallow and the deep part of one pass share the cache, so every layer runs once.

        Args:
            hidden: `[B, N, E]`, the embedding or the output of layer `first - 1`.
            cache: with an open pass.
            first: index of the first layer.
            end: index after the last one; None for all.
            lean: lean layers to use; None for the target's.

        Returns:
            `[B, N, E]`, before the final norm.
        """
        now: Pass | None = cache.current
        assert now is not None
        if self.model.training:  # set after the text was started
            check_mode(self.model)
        lean = lean or self.lean
        layers, types = self.parts.layers[first:end], self.layer_types[first:end]
        if first == 0:
            hidden = self.parts.place(hidden, now.positions)
        hidden, now.cache = hidden.contiguous(), cache
        shape = hidden.shape
        try:
            kinds = types if self._rotary_by_type else [None]
            made = now.angles.setdefault("library", {})  # once per pass
            rotations = self.parts.rotations(hidden, now.positions, kinds, made)
            with tree_attention_in(self.model, self.config, self.device):
                for at in range(first, first + len(layers)):
                    now.windows.pop(at, None)  # of an earlier run of this pass
                for at, (layer, kind) in enumerate(zip(layers, types, strict=True), first):
                    kind = kind if self._rotary_by_type else None
                    if lean is not None and lean.runs(at):
                        flat = hidden if hidden.ndim == 2 else hidden.view(-1, shape[-1])
                        hidden = lean.run(at, flat, now, rotations[kind], kind)
                        continue
                    hidden = layer(
                        hidden.view(shape),
                        attention_mask=None,
                        position_ids=now.positions,
                        **{self._cache_option: cache},
                        use_cache=True,
                        position_embeddings=rotations[kind],
                        tree_pass=now,
                    )
                    if not isinstance(hidden, Tensor):
                        raise NotImplementedError(
                            f"layers: expected each to return its hidden states alone, got a {type(hidden).__name__}"
                        )
        finally:
            now.cache = None  # breaks a reference cycle
        if missed := set(range(first, first + len(layers))) - now.windows.keys():
            raise RuntimeError(
                f"pass: expected every layer to attend through specdec, got another attention in layer {min(missed)}; "
                "something changed the model's attention meanwhile"
            )
        return hidden.view(shape)

    def run_all(
        self, hidden: Tensor, cache: TreeCache, layers: Sequence[int] = (), first: int = 0
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run all layers from `first` on, as `run_layers`; also return the inputs of the given layers, by layer."""
        inputs = {}
        for layer in layers:
            inputs[layer] = hidden = self.run_layers(hidden, cache, first, layer)
            first = layer
        return self.run_layers(hidden, cache, first), inputs

    def head(self, hidden: Tensor) -> Verified:
        """Apply the final norm and the head to `[..., E]`."""
        for part in (self.parts.norm, self.parts.project_out):
            hidden = hidden if part is None else part(hidden)
        single = self.exact and hidden.numel() == hidden.shape[-1]
        logits = self.logits(hidden.expand(2, *hidden.shape[1:]) if single else hidden)
        return Verified(logits[:1] if single else logits, hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the head to normed `[..., E]`, with the model's scaling and soft-cap."""
        with full_precision_sums(self.device):
            logits: Tensor = self.parts.head(hidden)
        return self.parts.scaling.finish(logits)

    def draft_head(self, vocabulary: Tensor | None) -> LMHeadTopK:
        """Create a drafter's head, as `parts.draft_head`."""
        return draft_head(self.parts, vocabulary, self.impl)

    @property
    def prepacked(self) -> bool:
        """Whether linear layers are prepacked; then drafters prepack theirs too."""
        if self.lean is not None and self.lean.prepacked:
            return True
        return any(isinstance(module, PrepackedLinear) for module in self.model.modules())

    def extend(
        self, tokens: Tensor, cache: TreeCache, rows: Rows, *, layers: int, behind: int
    ) -> Tensor:
        """Run the first layers on the next node of a chain; keys and values are kept for `verify`.

        Args:
            tokens: `[B]` int64.
            cache: holds the prefixes.
            rows: the B cache rows of the chains.
            layers: number of layers to run.
            behind: nodes of the chain before this one; 0 for the root.

        Returns:
            Hidden states `[B, 1, E]`; with `exact` and one row `[1, 2, E]`, the node and its copy. The pass stays open
            for a layer of the drafter's own.
        """
        # Two rows: the node and a copy, which the next node overwrites.
        alone = self.exact and len(tokens) == 1
        chain = TokenTree.chain(tokens[:, None].expand(-1, 2 if alone else 1))
        now = cache.open(chain.ancestors, chain.depth, rows, behind=behind)
        # A finished row runs on as padding; positions past the limit would change all rows' rotations.
        now.positions = now.positions.clamp(max=self.position_limit - 1)
        return self.run_layers(self.embed(chain.tokens), cache, 0, layers)

    def verify(
        self,
        tree: TokenTree,
        cache: TreeCache,
        rows: Rows,
        shallow: Shallow | None = None,
        side: SideNodes | None = None,
        layers: Sequence[int] = (),
    ) -> Verified:
        """Run a whole tree in one pass; its keys and values lie after the prefix until the next pass.

        Args:
            tree: B trees of N nodes.
            cache: holds the prefixes.
            rows: the B cache rows of the trees.
            shallow: set if the trees are chains that the first layers have run on already.
            side: side nodes of the same pass.
            layers: layers whose inputs are returned, ascending.

        Returns:
            Logits `[B, N, V]` and hidden states `[B, N, E]` after each node, side nodes' logits, and inputs of layers.
        """
        nodes = tree.tokens.shape[1]
        alone = self.exact and side is None and nodes == len(tree.tokens) == 1
        if alone:  # two rows: the node and a copy, which nothing reads
            tree = TokenTree.chain(tree.tokens.expand(1, 2))
        all_nodes = pass_nodes(tree, side)
        cache.open(all_nodes.ancestors, all_nodes.depth, rows)
        if shallow is None:
            hidden, inputs = self.run_all(self.embed(all_nodes.tokens), cache, layers)
        else:
            hidden = shallow.hidden[:, :1].expand(-1, 2, -1) if alone else shallow.hidden
            hidden = hidden[:, : tree.tokens.shape[1]]
            hidden, inputs = self.run_all(hidden, cache, layers, shallow.layers)
        inputs = {layer: states[:, :nodes] for layer, states in inputs.items()}
        if side is not None:
            begin = hidden.shape[1] - side.wanted
            hidden = torch.cat([hidden[:, :nodes], hidden[:, begin:]], 1)
        verified = self.head(hidden)
        if side is None and not alone:
            return verified._replace(inputs=inputs) if inputs else verified
        logits, hidden, *_ = verified
        wanted = None if side is None else logits[:, nodes:]
        return Verified(logits[:, :nodes], hidden[:, :nodes], wanted, inputs)

    def prefill(
        self,
        ids: Tensor,
        lengths: list[int],
        cache: TreeCache,
        tap: Tap | None = None,
        rows: Rows | None = None,
        listener: Listener | None = None,
    ) -> Verified:
        """Read prompts into the cache after its prefixes, in chunks of a fixed number of columns.

        Args:
            ids: `[B, L]` int64, without left padding; any valid ids beyond a row's length.
            lengths: per row, the number of tokens to read, 1 to L.
            cache: its B rows have prefixes of equal length.
            tap: called with hidden states between two layers.
            rows: rows to read the prompts into; None for the first ones.
            listener: called with the inputs of several layers.

        Returns:
            Logits `[B, V]` and hidden states `[B, E]` at the last token of each row, and the inputs of a listener's layers.
        """
        batch, total = ids.shape
        rows = rows or Rows.first(batch, self.device)
        start = cache.host_lengths[rows.host[0]]
        assert {cache.host_lengths[row] for row in rows.host} == {start}, "rows of one length"
        if self.exact and batch == 1 and total % PREFILL_CHUNK == 1:
            ids = torch.cat([ids, ids[:, -1:]], 1)  # a chunk has at least two columns
        final = torch.tensor(lengths, device=self.device)[:, None] - 1  # [B, 1]
        last: dict[int, Tensor] = {}  # inputs of layers, and the last layer's output
        end, wanted = len(self.layer_types), () if listener is None else listener.layers
        for begin in range(0, ids.shape[1], PREFILL_CHUNK):
            chunk = TokenTree.chain(ids[:, begin : begin + PREFILL_CHUNK])
            cache.set_lengths([start + begin] * batch, rows)
            cache.open(chunk.ancestors, chunk.depth, rows)
            hidden, done = self.embed(chunk.tokens), 0
            if tap is not None:
                hidden, done = self.run_layers(hidden, cache, 0, tap.layers), tap.layers
                tap.read(hidden, cache)
            hidden, inputs = self.run_all(hidden, cache, wanted, done)
            if listener is not None:
                # After the last column there is no token: any id stands there.
                following = ids.roll(-1, 1)[:, begin : begin + PREFILL_CHUNK]
                listener.read(inputs, following, cache)
            at = final - begin
            ends = at.clamp(0, hidden.shape[1] - 1)[..., None]
            for layer, states in {**inputs, end: hidden}.items():
                here = states.take_along_dim(ends, 1)[:, 0]
                last[layer] = torch.where(at >= 0, here, last[layer]) if begin else here
        cache.set_lengths([start + length for length in lengths], rows)
        said = self.head(last.pop(end))
        return said._replace(inputs=last) if last else said
