"""Bytes of three steps of a round by formula, the way they are done here and the naive way; tests hold both against counts.

    attention   one tree behind one prefix          each beam a sequence of its own, with the whole prefix
    head        a list of candidates per tile       logits written, and read back once
    commit      accepted rows move                  the whole cache is cloned, as the authors' ReDrafter does

Keys and values count as often as they are asked for, all else once. The naive ways are given the best of cases: kernels that
read all heads of a group at once, logits in the model's own 16 bits, one pass over them, a cache without free slots.
"""

from __future__ import annotations

from typing import NamedTuple

from specdec_kernels.gpu import KNOWN
from specdec_kernels.lm_head.kernel import BLOCK_V
from specdec_kernels.tree_attention.tiles import choose_tiles

ITEM = 2
"""Bytes of a number."""
ARCH = "sm_90"
"""Whose tiles are counted with: an H100's."""


class Model(NamedTuple):
    """Shapes of a target."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    vocabulary: int

    @property
    def slot(self) -> int:
        """Bytes of one slot's keys and values in one layer."""
        return 2 * self.kv_heads * self.head_dim * ITEM


MODELS = {
    "Llama-3-8B": Model(32, 32, 8, 128, 4096, 128256),
    "Vicuna-7B": Model(32, 32, 32, 128, 4096, 32000),
    "Vicuna-13B": Model(40, 40, 40, 128, 5120, 32000),
    "SmolLM2-135M": Model(30, 9, 3, 64, 576, 49152),
}


class Round(NamedTuple):
    """One row's round."""

    prefix: int = 2048
    beams: int = 10
    length: int = 5
    """Of a beam, its root counted."""
    nodes: int = 32
    """Of the tree that the beams are packed into."""
    accepted: int = 4
    """Below the root, none of them in its place yet."""


ROUND = Round()


def attention(model: Model, round: Round) -> tuple[int, int]:
    """Bytes of keys and values that a round's attention reads: naive, ours."""
    alone = _slots_read(model, round.prefix, round.length)
    tree = _slots_read(model, round.prefix, round.nodes)
    slot = model.layers * model.slot
    return slot * round.beams * alone, slot * tree


def _slots_read(model: Model, prefix: int, nodes: int) -> int:
    group = model.heads // model.kv_heads
    rows = nodes * group
    tile = choose_tiles(rows, model.head_dim, ITEM, KNOWN[ARCH], "auto").block_m
    lasts = (min(first + tile, rows) - 1 for first in range(0, rows, tile))
    # Parents come before children: a tile reads no node behind its own last one.
    return sum(prefix + last // group + 1 for last in lasts)


def head(model: Model, round: Round) -> tuple[int, int]:
    """Bytes of one draft step's choice of `beams` tokens for each beam, besides weights and states: naive, ours."""
    rows = keys = round.beams
    tiles = -(-model.vocabulary // BLOCK_V)
    lists = rows * tiles * (keys * 8 + 2 * 4)
    # The merge reads every tile's first key, maximum and sum, and of a tile that it takes from the other keys.
    merged = rows * tiles * (8 + 2 * 4) + rows * keys * (keys - 1) * 8
    return 2 * rows * model.vocabulary * ITEM, lists + merged


def commit(model: Model, round: Round) -> tuple[int, int]:
    """Bytes read and written to put what was accepted in its place: naive, ours."""
    moved = 2 * model.layers * model.slot
    return moved * (round.prefix + 1 + round.accepted), moved * round.accepted


STEPS = {"attention": attention, "head": head, "commit": commit}
