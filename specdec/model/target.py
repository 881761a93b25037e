"""The target: a Hugging Face causal language model that verifies a whole tree in one pass.

The model's own layers run in our loop, with our cache and one registered attention function. Nothing of the model is
copied or patched; between our passes it is the same model as before.
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
    """A causal language model seen as embedding, layers, head, and a cache that trees fit into."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any = None, *, exact: bool = False
    ) -> None:
        """Wrap a model in evaluation mode.

        `load_target` is the way in: it also runs the certificate that this view of the model is right.

        Args:
            model: a decoder whose parts `find_parts` knows, and a head.
            tokenizer: the model's, where there is one.
            exact: keep keys and values in float64 and never run fewer than two rows, so that in bf16 a node's
                result does not depend on what is verified beside it.

        Raises:
            ValueError: if the model lacks a part or has one that is not known, is in training mode, offloaded or
                spread over devices, or `exact` is asked of a device without float64.
        """
        check_placement(model)
        parts = find_parts(model)
        check_mode(model)
        if exact and model.device.type == "mps":
            raise ValueError("exact: expected a device with float64, got mps")
        self.model, self.parts, self.tokenizer = model, parts, tokenizer
        self.state = ModelState.of(model)
        """The model as it was looked at last."""
        self.changes = 0
        """How often its weights, adapters or threads have changed since; keys of another count are stale."""
        self.config: Any = parts.decoder.config
        self.exact = exact
        self.lean: LeanLayers | None = None
        """Layers that run in few operators, from `lean_layers`; None where all are the library's."""
        self.drafters: dict[str, Any] = {}
        """Loaded by name, for those who ask again."""
        self.costs: dict[int, Any] = {}
        """Cost tables by the number of threads."""
        self.device, self.dtype = model.device, model.dtype
        self.layer_types = parts.layer_types
        self.position_limit = position_limit(parts)
        self.impl: Impl = "reference" if self.dtype == torch.float64 else "auto"
        """What computes beside the model; float64 has no kernel."""
        self.embed_scale = parts.scaling.of_rows
        """What rows of `embedding` are multiplied with."""
        options = inspect.signature(parts.layers[0].forward).parameters
        names = (*CACHE_NAMES, "layer_past")
        # Layers that are wrapped may hide their options.
        self._cache_option = next((name for name in names if name in options), CACHE_NAME)
        rotary: Any = parts.rotary
        self._rotary_by_type = (
            rotary is not None and "layer_type" in inspect.signature(rotary.forward).parameters
        )

    @property
    def embedding(self) -> Tensor:
        """`[V, E]`; with `embed_scale` what `embed` looks up, for those who pick rows by index."""
        weight: Tensor = self.parts.embed_tokens.weight  # type: ignore[assignment]
        return weight

    def prepare(self) -> int:
        """Prepack the linear layers of a CPU model that the library runs; the plain loop and every drafter gain alike.

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
        """Make an empty cache for this model; arguments as in `TreeCache`."""
        return TreeCache(
            layers=len(self.parts.layers),
            rows=rows,
            capacity=capacity,
            # An exact pass has two rows at least, the second one perhaps padding.
            tree_capacity=max(tree_capacity, 2),
            dtype=torch.float64 if self.exact else self.dtype,
            device=self.device,
            texts=texts,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Embed `[...]` int64 tokens, `[..., E]`; what depends on their place, `run_layers` adds."""
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

        A shallow part and a deep part of one pass share the cache and compute every layer once.

        Args:
            hidden: `[B, N, E]`, the embedding or the output of layer `first - 1`.
            cache: with an open pass.
            first: index of the first layer.
            end: index after the last one; None for all.
            lean: what runs in place of the library's layers; None for the target's own.

        Returns:
            `[B, N, E]`, before the final norm.
        """
        now: Pass | None = cache.current
        assert now is not None
        if self.model.training:  # a text that was begun before
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
            now.cache = None  # they would hold each other in memory
        if missed := set(range(first, first + len(layers))) - now.windows.keys():
            raise RuntimeError(
                f"pass: expected every layer to attend through specdec, got another attention in layer {min(missed)}; "
                "something changed the model's attention meanwhile"
            )
        return hidden.view(shape)

    def run_all(
        self, hidden: Tensor, cache: TreeCache, layers: Sequence[int] = (), first: int = 0
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run all layers from `first` on as `run_layers` does, and return beside the output what enters some, by layer."""
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
        """Apply the head to normed `[..., E]`, with the model's own scaling of logits."""
        with full_precision_sums(self.device):
            logits: Tensor = self.parts.head(hidden)
        return self.parts.scaling.finish(logits)

    def draft_head(self, vocabulary: Tensor | None) -> LMHeadTopK:
        """Make a head for drafters, as `parts.draft_head` does."""
        return draft_head(self.parts, vocabulary, self.impl)

    @property
    def prepacked(self) -> bool:
        """Whether linear layers were prepacked, so that drafters prepack theirs as well."""
        if self.lean is not None and self.lean.prepacked:
            return True
        return any(isinstance(module, PrepackedLinear) for module in self.model.modules())

    def extend(
        self, tokens: Tensor, cache: TreeCache, rows: Rows, *, layers: int, behind: int
    ) -> Tensor:
        """Run the first layers on one more node of a chain; its keys and values are kept for `verify`.

        Args:
            tokens: `[B]` int64.
            cache: holds the prefixes.
            rows: the B cache rows that the chains belong to.
            layers: how many layers.
            behind: nodes of the chain before this one; 0 for the root.

        Returns:
            Hidden states `[B, 1, E]`, of a single exact row `[1, 2, E]` with those of its copy behind; the pass stays
            open for a layer of the drafter's own.
        """
        # Never one row: its copy is written over by the next node.
        alone = self.exact and len(tokens) == 1
        chain = TokenTree.chain(tokens[:, None].expand(-1, 2 if alone else 1))
        now = cache.open(chain.ancestors, chain.depth, rows, behind=behind)
        # A row at its end runs on as padding beside longer drafts: past the limit it would change everyone's rotations.
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
        """Run the whole tree in one pass; its keys and values lie behind the prefix afterwards.

        Args:
            tree: B trees of N nodes.
            cache: holds the prefixes.
            rows: the B cache rows that the trees belong to.
            shallow: where the trees are chains that the first layers have already seen.
            side: nodes run beside the trees, and forgotten.
            layers: whose inputs are wanted, ascending.

        Returns:
            Logits `[B, N, V]` and hidden states `[B, N, E]` after each node, what side nodes asked for, and the inputs of layers.
        """
        nodes = tree.tokens.shape[1]
        alone = self.exact and side is None and nodes == len(tree.tokens) == 1
        if alone:  # never one row: beside its own copy, which nothing reads
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
        """Read prompts into the cache behind what it holds, a fixed number of columns at a time.

        Args:
            ids: `[B, L]` int64, without left padding; what lies beyond a row's length is any valid id.
            lengths: per row how many of them to read, at least 1 and at most L.
            cache: whose B rows hold equally many tokens.
            tap: reads along.
            rows: that the prompts are read into; None for the first ones.
            listener: reads along too, what enters several layers.

        Returns:
            Logits `[B, V]` and hidden states `[B, E]` at the last token of each row, and the inputs of a listener's layers.
        """
        batch, total = ids.shape
        rows = rows or Rows.first(batch, self.device)
        start = cache.host_lengths[rows.host[0]]
        assert {cache.host_lengths[row] for row in rows.host} == {start}, "rows of one length"
        if self.exact and batch == 1 and total % PREFILL_CHUNK == 1:
            ids = torch.cat([ids, ids[:, -1:]], 1)  # never a chunk of one row
        final = torch.tensor(lengths, device=self.device)[:, None] - 1  # [B, 1]
        last: dict[int, Tensor] = {}  # what enters layers, and what leaves the last one
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
                # Behind the last column there is no token.
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
