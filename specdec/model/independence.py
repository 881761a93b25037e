"""The second part of the certificate: a layer's result for a token must not depend on unrelated tokens of the pass.

The model's own forward cannot show such a dependence, as all tokens before a token are its ancestors. Examples are one
activation scale for a whole pass, experts with limited capacity, and offsets counted from the end of a pass. With them
the text would depend on what a drafter proposes.

Layers are tested one by one on the same inputs, because rounding differences grow from layer to layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from specdec_kernels import ancestor_matrix, pack_bits

from ..tree import TokenTree
from .cache import Rows, TreeCache
from .target import Target

# Compared tokens, then other tokens beside them. The numbers below are indices of tokens.
TRIED, OTHERS = range(3), range(3, 19)
LENGTHS = (9, 7, 5)
"""Lengths of the prompts before them, in tokens."""


class Company(NamedTuple):
    """The tokens of a test pass."""

    name: str
    parents: list[int]
    """Parents of the tree, the same in every row."""
    rows: list[Sequence[int]]
    """Per row, the tokens at its nodes."""
    prompts: list[int]
    """Per row, the index of the prompt before it."""


TREE = [-1, 0, 1, *[0] * 13]
AMONG_OTHERS = [*TRIED, *OTHERS[:13]]
COMPANIES = (
    Company("a chain of 2", [-1, 0], [TRIED[:2]], [0]),
    Company("a chain of 5", [-1, 0, 1, 2, 3], [AMONG_OTHERS[:5]], [0]),
    Company("a chain of 16", list(range(-1, 15)), [AMONG_OTHERS], [0]),
    Company("a tree of 5 nodes", [-1, 0, 1, 0, 0], [AMONG_OTHERS[:5]], [0]),
    Company("a tree of 16 nodes", TREE, [AMONG_OTHERS], [0]),
    Company("14 nodes alike", [-1, 0, 1, *[1] * 13], [[*TRIED, *[TRIED[-1]] * 13]], [0]),
    Company("other rows", TREE, [AMONG_OTHERS, OTHERS, OTHERS[::-1]], [0, 1, 2]),
)
# Measures rounding: a pass of the same width in which no token sees another, as all are roots.
COPIES = Company("15 copies of itself", [-1] * 16, [[TRIED[0]] * 16], [0])
# Relative differences that always count as rounding; measured over families in docs/use/models.md. Transformers' routers
# and softmaxes compute in float32 in float64 models too.
GRANTED = {
    torch.float64: 1e-6,
    torch.float32: 64 * torch.finfo(torch.float32).eps,
    torch.float16: 0.75 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 0.75 * torch.finfo(torch.bfloat16).eps,
}


def refuse_known(model: nn.Module) -> None:
    """Raise ValueError for model settings that make tokens depend on each other."""
    for name, config in getattr(model, "peft_config", {}).items():
        if getattr(config, "alora_invocation_tokens", None):
            raise ValueError(
                f"model: expected adapters that treat all tokens alike, got {name!r} with alora_invocation_tokens, "
                "which is switched on by a place in the text"
            )


@torch.inference_mode()
def certify_independence(target: Target) -> None:
    """Compare each layer's results for tokens alone with those for the same tokens in larger passes.

    Raises:
        ValueError: naming the model and the pass, if results differ by more than twice the rounding that a pass of that
            shape causes in this model.
    """
    probe = _Probe(target)
    copies = probe.distances(COPIES)
    # The copy that comes closest: a difference of only some copies is not rounding.
    rounding = _most(copies.amin(1), target)
    limit = max(GRANTED[target.dtype], 2 * rounding)
    for company in (COPIES, *COMPANIES):
        distances = copies if company is COPIES else probe.distances(company)
        if not (distance := _most(distances, target)) <= limit:
            raise ValueError(
                f"model: {type(target.model).__name__} is not supported: expected what a layer makes of a token not to "
                f"depend on others in the pass, to {limit:.0e}, got a relative difference of {distance:.0e} between a "
                f"token alone and with {company.name}"
            )


def _most(distances: Tensor, target: Target) -> float:
    """Return the largest distance; in 16 bits the upper quartile, as near-ties between experts may go either way."""
    ordered = distances.flatten().nan_to_num(torch.inf).sort().values
    return float(ordered[len(ordered) * 3 // 4 if target.dtype.itemsize == 2 else -1])


class _Probe:
    """Runs the test tokens through a target's layers, first alone and then in larger passes."""

    def __init__(self, target: Target) -> None:
        """Run the compared tokens one at a time, and the other tokens in a chain."""
        self.target = target
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(
            0, target.config.vocab_size, (len(LENGTHS), OTHERS.stop), generator=generator
        ).to(target.device)
        self.prefixes = self._new_cache(len(LENGTHS))
        target.prefill(ids[:, : max(LENGTHS)], list(LENGTHS), self.prefixes)

        cache, tokens = self._cache([0]), ids[:1]
        first = Rows.first(1, target.device)
        seen = []
        for text in (*(tokens[:, at : at + 1] for at in TRIED), tokens[:, OTHERS.start :]):
            tree = TokenTree.chain(text)
            cache.open(tree.ancestors, tree.depth, first)
            seen.append(self._pass(cache, embedded=target.embed(text)))
            cache.set_lengths([cache.host_lengths[0] + 1])
        inputs, outputs = zip(*seen, strict=True)
        self.inputs = [torch.cat(parts, 1)[0] for parts in zip(*inputs, strict=True)]
        """Inputs of each layer and of the head, `[19, E]`."""
        self.alone = [torch.cat(parts, 1)[0] for parts in zip(*outputs, strict=True)]
        """Outputs of each layer, `[19, E]`, and of the head, `[19, V]`."""

    def distances(self, company: Company) -> Tensor:
        """Return the relative distance of the compared tokens' results from those alone, per layer and token."""
        tokens = torch.tensor([list(row) for row in company.rows], device=self.target.device)
        batch = len(tokens)
        ancestors = ancestor_matrix(torch.tensor([company.parents], device=tokens.device))
        cache = self._cache(company.prompts)
        cache.open(
            pack_bits(ancestors).expand(batch, -1, -1),
            (ancestors.sum(-1) - 1).expand(batch, -1),
            Rows.first(batch, tokens.device),
        )
        _, outputs = self._pass(cache, given=[layer[tokens] for layer in self.inputs])
        tried = tokens < OTHERS.start  # [B, N]
        distances = [
            (torch.linalg.vector_norm(output[tried] - own[tokens[tried]], dim=-1).float())
            / torch.linalg.vector_norm(own[tokens[tried]], dim=-1).float().clamp(min=1e-30)
            for output, own in zip(outputs, self.alone, strict=True)
        ]
        return torch.stack(distances)

    def _pass(
        self,
        cache: TreeCache,
        *,
        embedded: Tensor | None = None,
        given: list[Tensor] | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run every layer and the head, on the previous layer's output or on the given inputs."""
        target, layers = self.target, len(self.target.layer_types)
        inputs, outputs = [], []
        for layer in range(layers + 1):
            hidden = embedded if given is None else given[layer]
            assert hidden is not None
            inputs.append(hidden)
            if layer < layers:
                embedded = target.run_layers(hidden, cache, layer, layer + 1)
            else:
                embedded = target.head(hidden).logits
            outputs.append(embedded)
        return inputs, outputs

    def _new_cache(self, rows: int) -> TreeCache:
        return self.target.new_cache(
            rows=rows, capacity=max(LENGTHS) + len(TRIED), tree_capacity=len(OTHERS)
        )

    def _cache(self, prompts: list[int]) -> TreeCache:
        """Create a cache whose rows hold these prompts."""
        assert self.prefixes.kv is not None
        cache = self._new_cache(len(prompts))
        cache.kv = self.prefixes.kv[:, :, prompts].contiguous()
        cache.set_lengths([LENGTHS[prompt] for prompt in prompts])
        return cache
