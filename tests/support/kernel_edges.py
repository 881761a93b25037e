"""Calls at the edges of every kernel: empty and full caches, ragged rows, one node and 256, sizes that no tile divides."""

import torch

from attention_problems import FP16, FP32, make_problem, with_shared
from coupled_problems import make_candidates
from early_exit_steps import SHAPES, make_step
from head_problems import make_head
from pick_problems import make_logits
from specdec_kernels import (
    accept_tree,
    ancestor_matrix,
    beam_step,
    commit_kv,
    coupled_log_probs,
    lm_head_beams,
    lm_head_topk,
    pack_bits,
    pack_tree,
    pick_tokens,
    tree_attention,
)
from specdec_kernels.draft_step import DraftStepWeights, draft_step
from specdec_kernels.early_exit import early_exit_step
from specdec_kernels.testing.trees import depths, make_parents
from specdec_kernels.tree_attention import tree_attention_lse


def generator():
    return torch.Generator().manual_seed(0)


def pad(arguments, padding, rows):
    """Make some rows padding: -1 by name, and garbage all around."""
    for name, x in arguments.items():
        if len(padding) and x is not None and not name.startswith("shared"):
            x[padding] = -1 if name == rows else 1 << 40


def attention(function=tree_attention_lse, shared=None, padding=(), **options):
    def call():
        problem = make_problem("cpu", **{"heads": (4, 2), "size": 16, **options})
        if shared:
            problem = with_shared(problem, *shared)
        # No slot behind the longest row's last node.
        slots = int(problem.tree["prefix_lens"].max()) + problem.q.shape[1]
        problem.k, problem.v = problem.k[:, :, :slots], problem.v[:, :, :slots]
        pad(problem.tree, padding, "cache_rows")
        problem.run("triton", function)

    return call


def commit(nodes, prefixes, lengths, size=16, padding=()):
    def call():
        batch, slots = len(prefixes), max(prefixes) + nodes
        kv = torch.randn(2, 2, batch + 1, 2, slots, size, generator=generator())
        path = torch.full((batch, nodes), -1)
        for row, length in enumerate(
            lengths
        ):  # the last nodes of a tree, so that all move as far as they can
            path[row, : length + 1] = torch.arange(length + 1) + nodes - 1 - length
            path[row, 0] = 0
        rows = torch.arange(batch).flip(0) + 1
        lengths_ = torch.tensor(lengths)
        where = {"prefix_lens": torch.tensor(prefixes), "cache_rows": rows}
        pad({"path": path, "lengths": lengths_, **where}, padding, "cache_rows")
        commit_kv(kv, path, lengths_, **where, impl="triton")

    return call


def accept(batch, nodes, sizes):
    def call():
        random = generator()
        parents = torch.stack([make_parents("random", nodes, random) for _ in range(batch)])
        tokens, picked = torch.randint(0, 2, (2, batch, nodes), generator=random)
        tree = (tokens, parents, depths(parents), pack_bits(ancestor_matrix(parents)))
        accept_tree(*tree, torch.tensor(sizes), picked, impl="triton")

    return call


def pack(count, capacity, **options):
    def call():
        random = generator()
        parents = make_parents("random", count + 1, random)[None, 1:].repeat(2, 1) - 1
        parents[:, ::7] = 1 << 60  # invalid, wherever it points
        tokens = torch.randint(0, 3, (2, count), generator=random)
        scores = -torch.rand(2, count, generator=random)
        roots, valid = torch.zeros(2, dtype=torch.int64), parents < 1 << 60
        pack_tree(
            roots, tokens, parents, scores, valid=valid, capacity=capacity, max_depth=9,
            impl="triton", **options,
        )  # fmt: skip

    return call


def beams(batch, width, count, most):
    def call():
        scores, log_probs = torch.zeros(batch, width), torch.zeros(batch, width, count)
        ids = torch.arange(batch * width * count).view_as(log_probs)
        beam_step(scores, log_probs, ids, most, impl="triton")

    return call


def couple(*shape):
    def call():
        log_probs, ids, streams, positions = make_candidates(*shape, 0)
        key = {"seed": 1, "streams": streams, "positions": positions}
        options = {"temperature": 0.7, "sharpness": 1.5, "impl": "triton"}
        coupled_log_probs(log_probs, ids, **key, **options)

    return call


def head(rows, size, vocabulary, k, dtype=FP32, beams=False):
    def call():
        hidden, weight = make_head(rows, size, vocabulary, dtype, 0, "cpu")
        if beams:
            scores = torch.zeros(1, rows)
            return lm_head_beams(hidden[None], weight, scores, k, impl="triton")
        return lm_head_topk(hidden, weight, k, impl="triton")

    return call


def draft(batch, width, size, out, blocks, dtype=FP32, rnn=True):
    def call():
        random = generator()

        def normal(*shape):
            return torch.randn(shape, generator=random).to(dtype)

        weights = DraftStepWeights(
            *(normal(size, size) if rnn else None for _ in range(2)),
            normal(size) if rnn else None,
            normal(out, size),
            [normal(out, out) for _ in range(blocks)],
            [normal(out) for _ in range(blocks)],
        )
        # Tokens and parents that there are not are moved to those that there are.
        tokens = torch.randint(-9, 30, (batch, width), generator=random)
        parents = torch.randint(-9, 30, (batch, width), generator=random)
        draft_step(
            tokens, parents, normal(batch, 3, size), normal(batch, size), normal(batch, out),
            normal(11, size), weights, impl="triton",
        )  # fmt: skip

    return call


def early_exit(shape, prefixes, stopped, appends=None, dtype=FP32, padding=()):
    def call():
        step = make_step(SHAPES[shape], batch=len(prefixes), slots=max(prefixes) + 1, dtype=dtype)
        step["prefix_lens"] = torch.tensor(prefixes)
        step["stopped"] = torch.tensor(stopped)
        step["appends"] = None if appends is None else torch.tensor(appends)
        pad({name: step[name] for name in ("prefix_lens", "cache_rows")}, padding, "cache_rows")
        early_exit_step(**step, impl="triton")

    return call


def pick(rows, vocabulary, dtype=FP32, **options):
    def call():
        logits, streams, positions = make_logits(rows, vocabulary, 0, dtype=dtype)
        given = {"seed": 1, "streams": streams, "positions": positions, **options}
        pick_tokens(logits, **given, impl="triton")

    return call


EDGES = {
    "tree_attention": {
        "empty-N1": attention(prefixes=(0,), nodes=1),
        "empty-N256-D128": attention(prefixes=(0,), nodes=256, heads=(1, 1), size=128, dtype=FP16),
        "full-ragged-N1": attention(prefixes=(0, 1, 600, 63), nodes=1, dtype=FP16),
        "full-ragged-N65": attention(prefixes=(0, 300, 31), nodes=65, heads=(3, 1), dtype=FP16),
        "tile-N64-D80": attention(prefixes=(64,), nodes=64, size=80, dtype=FP16),
        "window": attention(prefixes=(0, 90, 200), window=40),
        "fixed-softcap": attention(prefixes=(0, 513), split_policy="fixed", softcap=9.0),
        "shared": attention(
            prefixes=(70, 300, 70, 65),
            shared=([4, 1, 4, -1], [64, 300, 64, 0]),
            function=tree_attention,
        ),
        "tiles-63-64-65": attention(prefixes=(63, 64, 65, 127, 128), nodes=3, dtype=FP16),
        "one-long": attention(prefixes=(1290, 1, 0, 63), nodes=2, dtype=FP16),
        "padding": attention(prefixes=(5, 70, 9), nodes=5, padding=[0, 2]),
        "padding-split-shared": attention(
            prefixes=(600, 300, 70, 65),
            shared=([4, 4, 4, -1], [64, 64, 64, 0]),
            padding=[1, 3],
            window=500,
        ),
    },
    "commit_kv": {
        "empty-N2": commit(2, [0], [1]),
        "empty-N256-one": commit(256, [0], [1]),
        "full-N256-all": commit(256, [3], [255]),
        "full-ragged-D80": commit(20, [0, 40, 7], [0, 11, 19], 80),
        "padding": commit(20, [0, 40, 7], [3, 11, 19], padding=[0, 2]),
    },
    "accept_tree": {
        "N1": accept(2, 1, [1, 1]),
        "N65-ragged": accept(3, 65, [65, 1, 64]),
        "padding": accept(3, 5, [0, 3, 0]),
        "N256": accept(1, 256, [256]),
    },
    "pack_tree": {
        "K1-N1": pack(1, 1),
        "K63-N5": pack(63, 5),
        "K65-N66-wider": pack(65, 66, width=80),
        "K300-N256": pack(300, 256),
    },
    "beam_step": {
        "W1-K1": beams(1, 1, 1, 1),
        "W5-K13-ragged": beams(3, 5, 13, 65),
        "W64-K64": beams(1, 64, 64, 64),
        "head-W1": head(1, 20, 5, 9, beams=True),
        "head-W33": head(33, 16, 300, 33, FP16, beams=True),
    },
    "coupled_log_probs": {
        "W1-k1": couple(1, 1, 1),
        "W5-k13": couple(3, 5, 13),
        "W2-k1024": couple(1, 2, 1024),
    },
    "lm_head": {
        "R1-V1": head(1, 16, 1, 1),
        "R3-V127-k64": head(3, 40, 127, 64),
        "R65-V129-k3": head(65, 33, 129, 3, FP16),
        "R2-V1025-k2": head(2, 64, 1025, 2, FP16),
    },
    "draft_step": {
        "R1-E1": draft(1, 1, 1, 1, 1),
        "R65-E33": draft(13, 5, 33, 66, 1),
        "R3-E130-X65": draft(3, 1, 130, 65, 2, FP16),
        "R4-no-rnn": draft(2, 2, 20, 40, 0, rnn=False),
    },
    "early_exit": {
        "empty-and-full": early_exit("E64-H4-G2-D16", [0, 11, 5], [False, False, False]),
        "stopped": early_exit("E63-H3-G1-D32", [3, 300], [True, False], dtype=FP16),
        "appends": early_exit("E130-H2-G2-D80", [2, 9], [True, True], appends=[True, False]),
        "padding": early_exit(
            "E64-H4-G2-D16", [2, 9, 4], [False, False, True], appends=[True] * 3, padding=[0, 2]
        ),
    },
    "pick_tokens": {
        "R1-V1": pick(1, 1),
        "R3-V129": pick(3, 129, FP16),
        "R2-V1025-k50-p0.9": pick(2, 1025, top_k=50, top_p=0.9),
    },
}
