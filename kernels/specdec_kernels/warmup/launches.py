"""All launches of a decode: one call of each op for every choice that its launcher makes.

Inputs are zeros with almost no memory, as Triton distinguishes only dtypes, alignment, and strides of 1 or multiples of
16. Trees are empty and nothing is accepted, so only results are written.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..accept_tree import accept_tree
from ..ancestors import WORD
from ..beam_step import beam_step, lm_head_beams
from ..commit_kv import commit_kv
from ..coupled_log_probs import coupled_log_probs
from ..draft_step import RecurrentDraftStep, draft_step
from ..early_exit import EarlyExitAdapter, early_exit_step
from ..gpu import Gpu, gpu_of
from ..lm_head import HeadWeights, lm_head_topk
from ..pack_tree import pack_tree
from ..pick_tokens import pick_tokens
from ..tree_attention import tree_attention
from .shape import BeamDraftShape, DecodeShape, Draws, ExitDraftShape, Heads, HeadShape

Launch = tuple[str, Callable[[], Any]]
Size = TypeVar("Size")


def reachable(shape: DecodeShape, device: torch.device) -> Iterator[Launch]:
    """Yield all calls of ops that differ in the compiled kernel; they run the kernels only."""
    inputs, gpu = _Inputs(shape.dtype, device), gpu_of(device)
    yield from _attention(shape, inputs, gpu)
    yield from _trees(shape, inputs)
    if shape.draws is not None:
        yield "pick_tokens", partial(_pick, shape, inputs, shape.draws)
    if shape.beams is not None:
        yield from _beam_drafts(shape, inputs, gpu, shape.beams)
    if shape.early_exit is not None:
        yield from _exit_drafts(shape, inputs, gpu, shape.early_exit)


class _Inputs:
    """Creates inputs of zeros on the device and in the dtype of a decode."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device

    def floats(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(shape, dtype=dtype or self.dtype, device=self.device)

    def ids(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self.device)

    def table(self, *shape: int) -> Tensor:
        """Create a large tensor with strides of the same kind: a multiple of 16 becomes 0, another number 3."""
        strides: list[int] = []
        step = 1
        for n in reversed(shape):
            strides.insert(0, 1 if step == 1 else 3 if step % 16 else 0)
            step *= n
        last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        return self.floats(1 + last).as_strided(shape, strides)

    def head(self, head: HeadShape) -> HeadWeights:
        return HeadWeights(
            self.table(head.vocabulary, head.width),
            self.floats(head.vocabulary) if head.bias else None,
            self.ids(head.vocabulary) if head.mapped else None,
            head.logit_scale,
            head.softcap,
            self.dtype,
        )

    def cache(self, shape: DecodeShape, heads: Heads, layers: int = 1) -> Tensor:
        return self.table(layers, 2, shape.rows, heads.kv, shape.slots, heads.size)


def _distinct(sizes: Iterable[Size], choice: Callable[[Size], Hashable]) -> Iterable[Size]:
    """Yield the first of all sizes for which launchers make the same choice."""
    kept: dict[Hashable, Size] = {}
    for size in sizes:
        kept.setdefault(choice(size), size)
    return kept.values()


def _power(n: int) -> int:
    """Round up to a power of two."""
    return 1 << (n - 1).bit_length()


def _named_rows(shape: DecodeShape) -> tuple[bool, ...]:
    """Return whether cache rows may be given: only if rows can end before others."""
    return (False, True) if shape.rows > 1 else (False,)


def _attention_choice(
    shape: DecodeShape, heads: Heads, gpu: Gpu, sizes: tuple[int, int, int]
) -> Hashable:
    """Return the choice for rows, nodes and slots: the tiles, and whether prefixes are split."""
    from ..tree_attention.tiles import choose_splits, choose_tiles

    rows, nodes, slots = sizes
    queries = nodes * heads.query // heads.kv
    tiles = choose_tiles(queries, heads.size, shape.dtype.itemsize, gpu, "auto")
    programs = rows * heads.kv * -(-queries // tiles.block_m)
    return tiles, choose_splits(programs, slots, tiles, gpu, "auto") > 1


def _attention(shape: DecodeShape, inputs: _Inputs, gpu: Gpu) -> Iterator[Launch]:
    def alone(sizes: tuple[int, int, int]) -> Hashable:
        return _attention_choice(shape, shape.heads, gpu, sizes)

    def shared(sizes: tuple[int, int, int]) -> Hashable:
        rows, nodes, _ = sizes
        together = _attention_choice(shape, shape.heads, gpu, (1, rows * nodes, 1))
        return _attention_choice(shape, shape.heads, gpu, (1, nodes, 1)), together

    most = min(max(shape.nodes, shape.prompt_chunk), shape.slots)
    # Short prefixes are never split.
    sizes = [
        (rows, nodes, slots)
        for nodes, rows in product(range(1, most + 1), range(1, shape.rows + 1))
        for slots in (nodes, shape.slots)
    ]
    kinds = [(False, size) for size in _distinct(sizes, alone)]
    if shape.copies:
        kinds += [(True, size) for size in _distinct(sizes, shared)]
    for (together, size), window, named in product(kinds, shape.windows, _named_rows(shape)):
        yield "tree_attention", partial(_attend, shape, inputs, size, window, named, together)


def _attend(
    shape: DecodeShape, inputs: _Inputs, sizes: tuple[int, int, int], window: int | None, named: bool, shared: bool
) -> None:  # fmt: skip
    (rows, nodes, slots), heads = sizes, shape.heads
    keys, values = inputs.cache(shape, heads)[0, :, :, :, :slots]
    tree_attention(
        # In the order in which models pass queries, `[B, H, N, D]`.
        inputs.floats(rows, heads.query, nodes, heads.size).transpose(1, 2),
        keys,
        values,
        prefix_lens=inputs.ids(rows),
        ancestors=inputs.ids(rows, nodes, -(-nodes // WORD)),
        depth=inputs.ids(rows, nodes),
        cache_rows=inputs.ids(rows) if named else None,
        shared_rows=inputs.ids(rows) if shared else None,
        shared_lens=inputs.ids(rows) if shared else None,
        softcap=shape.softcap,
        window=window,
    )


def _trees(shape: DecodeShape, inputs: _Inputs) -> Iterator[Launch]:
    row = inputs.ids(1)
    for nodes in _distinct(range(1, shape.nodes + 1), lambda n: _power(-(-n // WORD))):
        node, ancestors = inputs.ids(1, nodes), inputs.ids(1, nodes, -(-nodes // WORD))
        yield "accept_tree", partial(accept_tree, node, node, node, ancestors, row, node)

    def packing(count: int) -> Hashable:
        width = min(shape.nodes, count + 1)
        return max(64, _power(count)), -(-width // WORD), _power(width), width <= count

    for count in _distinct(range(1, shape.proposals + 1), packing):
        entry = inputs.ids(1, count)
        scores, valid = (inputs.floats(1, count, dtype=x) for x in (torch.float32, torch.bool))
        pack = partial(pack_tree, row, entry, entry, scores, source=entry, valid=valid)
        most = shape.nodes
        yield "pack_tree", partial(pack, capacity=most, max_depth=most, row_depth=row)
    caches = [inputs.cache(shape, shape.heads, shape.layers)]
    if shape.early_exit is not None:
        caches.append(inputs.cache(shape, shape.early_exit.heads))
    for kv in caches if shape.nodes > 1 else []:
        path = inputs.ids(1, 2)
        yield "commit_kv", partial(commit_kv, kv, path, row, prefix_lens=row, cache_rows=row)


def _pick(shape: DecodeShape, inputs: _Inputs, draws: Draws) -> None:
    pick_tokens(
        inputs.floats(1, shape.vocabulary, dtype=draws.dtype),
        seed=0,
        streams=inputs.ids(1),
        positions=inputs.ids(1),
        temperature=draws.temperature,
        top_k=draws.top_k,
        top_p=draws.top_p,
    )


def _layer_choice(
    shape: DecodeShape, gpu: Gpu, rows: int, *layers: tuple[int, int]
) -> tuple[Hashable, ...]:
    """Return the tiles of layers (features, depth) and heads for a number of rows."""
    from ..device.skinny_linear import choose_tiles

    return _power(rows), *(choose_tiles(rows, *layer, shape.dtype, gpu) for layer in layers)


def _beam_drafts(
    shape: DecodeShape, inputs: _Inputs, gpu: Gpu, beams: BeamDraftShape
) -> Iterator[Launch]:
    size = shape.hidden_size
    with torch.device("meta"):
        step = RecurrentDraftStep(
            size, exit_dim=beams.exit_dim, residual_blocks=beams.residual_blocks, rnn=beams.rnn
        )
    width = step.exit_dim

    def choice(sizes: tuple[int, int]) -> Hashable:
        layers = ((size, size), (width, size), (width, width))
        return sizes[1], *_layer_choice(shape, gpu, sizes[0] * sizes[1], *layers)

    # A draft begins with one beam.
    widths = (1, min(beams.beam_width, beams.head.vocabulary))
    for sizes in _distinct(product(range(1, shape.rows + 1), widths), choice):
        yield "draft_step", partial(_draft, shape, inputs, step, beams.embed_scale, *sizes)
        yield "lm_head", partial(_next_beams, inputs, beams, *sizes)


def _draft(
    shape: DecodeShape, inputs: _Inputs, step: RecurrentDraftStep, embed_scale: float | None, rows: int, width: int
) -> None:  # fmt: skip
    size = shape.hidden_size
    draft_step(
        inputs.ids(rows, width),
        inputs.ids(rows, width),
        inputs.floats(rows, width, size),
        inputs.floats(rows, size),
        None if step.context_in is None else inputs.floats(rows, step.exit_dim),
        inputs.table(shape.vocabulary, size),
        tree_map_only(Tensor, lambda weight: inputs.table(*weight.shape), step.step_weights()),
        embed_scale=embed_scale,
    )


def _next_beams(inputs: _Inputs, beams: BeamDraftShape, rows: int, width: int) -> None:
    head, scores = beams.head, inputs.floats(rows, width, dtype=torch.float32)
    hidden = inputs.floats(rows, width, head.width)
    weights = inputs.head(head)
    if beams.candidates is None:
        lm_head_beams(hidden, weights, scores, beams.beam_width)
        return
    count = min(beams.candidates, head.vocabulary)
    top = lm_head_topk(hidden.flatten(0, 1), weights, count)
    log_probs, ids = (x.unflatten(0, (rows, width)) for x in (top.log_probs, top.ids))
    if beams.coupled:
        log_probs = coupled_log_probs(
            log_probs,
            ids,
            seed=0,
            streams=inputs.ids(rows),
            positions=inputs.ids(rows),
            temperature=1.0,
            sharpness=1.0,
        )
    kept = min(beams.beam_width, head.vocabulary)
    log_probs, ids = (x[..., :kept].contiguous() for x in (log_probs, ids))
    beam_step(scores, log_probs, ids, beams.beam_width)


def _exit_drafts(
    shape: DecodeShape, inputs: _Inputs, gpu: Gpu, draft: ExitDraftShape
) -> Iterator[Launch]:
    size, heads = shape.hidden_size, draft.heads
    wide, narrow = heads.query * heads.size, heads.kv * heads.size
    with torch.device("meta"):
        adapter = EarlyExitAdapter(size, *heads, rope_theta=draft.rope_theta)

    def choice(sizes: tuple[int, int]) -> Hashable:
        rows, slots = sizes
        layers = _layer_choice(shape, gpu, rows, (wide + 2 * narrow, size), (size, wide))
        return _attention_choice(shape, heads, gpu, (rows, 1, slots)), layers

    sizes = product(range(1, shape.rows + 1), (1, shape.slots))
    for (rows, slots), named in product(_distinct(sizes, choice), _named_rows(shape)):
        yield "early_exit_step", partial(_exit, shape, inputs, draft, adapter, rows, slots, named)


def _exit(
    shape: DecodeShape, inputs: _Inputs, draft: ExitDraftShape, adapter: nn.Module, rows: int, slots: int, named: bool
) -> None:  # fmt: skip
    assert isinstance(adapter, EarlyExitAdapter)
    keys, values = inputs.cache(shape, draft.heads)[0, :, :, :, :slots]
    flags = inputs.floats(rows, dtype=torch.bool)
    early_exit_step(
        inputs.floats(rows, shape.hidden_size),
        keys,
        values,
        # Contiguous, as a step requires.
        tree_map_only(Tensor, lambda weight: inputs.floats(*weight.shape), adapter.step_weights()),
        inputs.head(draft.head),
        prefix_lens=inputs.ids(rows),
        positions=inputs.ids(rows),
        stopped=flags,
        tokens=inputs.ids(rows),
        confidence=inputs.floats(rows, dtype=torch.float32),
        eta=0.0,
        cache_rows=inputs.ids(rows) if named else None,
        appends=flags.clone(),
    )
