"""Counted bytes of each kernel are close to the minimum."""

from importlib import import_module

import pytest
import torch
import triton
import triton.language as tl

from attention_problems import FP16, make_problem
from specdec_kernels import commit_kv, lm_head_topk, tree_attention
from specdec_kernels.accept_tree import kernel as accept_kernel
from specdec_kernels.device.skinny_linear import launch_skinny_linear
from specdec_kernels.gpu import KNOWN, pretend
from specdec_kernels.lm_head import kernel as head_kernel
from specdec_kernels.testing.accesses import recorded_accesses, unavailable
from specdec_kernels.testing.case import Inputs

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
# Of each op's counted cases the quickest.
QUICK = {
    "accept_tree": "B8-N64",
    "beam_step": "B8-W10-K10",
    "commit_kv": "smollm2-B2-float32",
    "coupled_log_probs": "B8-W8-k32",
    "draft_step": "smollm2-B1-W8-float16",
    "lm_head": "smollm2-R4-k1-V8192-float16",
    "pack_tree": "smollm2-B8-W5-L5-N16",
    "pick_tokens": "R1-V4096-k50-p0.9-float32",
    "tree_attention": "smollm2-B2-N16-P1000-float32",
}
# Small enough that the weights and caches of these cases count as often as they are asked for.
LARGE = 300_000


@triton.jit
def _copy_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + o, tl.load(x_ptr + o, mask=o < n, other=0.0), mask=o < n)


@pytest.fixture
def counting(monkeypatch):
    module = import_module("bench.counted.bytes")
    monkeypatch.setattr(module, "LARGE", LARGE)
    return module


@pytest.fixture
def naive():
    return import_module("bench.counted.naive")


def case_of(counting, op):
    return next(case for case in counting.module_of(op).COUNTED if case.name == QUICK[op])


def test_repeated_and_distinct_accesses_are_counted_separately():
    x, out = torch.randn(50), torch.empty(1)
    with recorded_accesses() as launches:
        _copy_kernel[(4,)](x.expand(8, 50)[0], out.expand(50), 50, BLOCK=32)
        _copy_kernel[(1,)](x[::2], out.expand(50), 20, BLOCK=32)
    first, second = launches
    read, written = first.operands
    assert (read.loaded, read.distinct_loaded, read.stored) == (200, 200, 0)
    assert (written.stored, written.distinct_stored, written.loaded) == (4, 4, 0)
    # A strided view owns every other number only.
    assert second.operands[0].size == 100
    assert second.operands[0].distinct_loaded == 40
    assert len(second.outside) == 2


@pytest.mark.parametrize("op", QUICK)
def test_bytes_moved_are_near_the_minimum(op, counting):
    row = counting.count(op, case_of(counting, op))
    assert row["counted"] <= row["asked"]
    assert row["ratio"] > 0.4
    if row["target"] is not None:
        assert row["ratio"] <= row["target"]
    if op == "tree_attention":
        assert row["prefix_reads"] <= counting.PREFIX_TARGET * row["row_tiles"]


def test_every_byte_target_has_a_quick_case(counting):
    assert set(counting.TARGETS) | {"tree_attention"} <= set(QUICK)


def test_reading_weights_twice_misses_the_target(counting, monkeypatch):
    tiles = head_kernel._tiles
    monkeypatch.setattr(head_kernel, "_tiles", lambda hidden: (2, *tiles(hidden)[1:]))
    row = counting.count("lm_head", case_of(counting, "lm_head"))
    assert row["ratio"] > 1.9


def test_byte_totals_equal_the_tilelens_profiler(kernel_device, counting, monkeypatch):
    from tilelens import clear, trace
    from tilelens.clients import Profiler
    from tilelens.core.config import config

    op = "accept_tree"
    row = counting.count(op, case_of(counting, op))
    # It would look at one program, and do no loads.
    monkeypatch.setattr(config, "profiler_enable_block_sampling", False)
    monkeypatch.setattr(config, "profiler_enable_load_store_skipping", False)
    profiler = Profiler()
    traced = trace(profiler)(accept_kernel._accept_tree_kernel)
    monkeypatch.setattr(accept_kernel, "_accept_tree_kernel", traced)
    case_of(counting, op).prepare(Inputs())()
    clear()
    (launch,) = row["launches"]
    for name, found in (("loaded", profiler.load_bytes), ("stored", profiler.store_bytes)):
        assert sum(x[name] for x in launch["operands"].values()) == found.total_bytes_true


# The formulas of the naive ways, and of ours, against counts.


@pytest.mark.parametrize("nodes", [7, 70])
def test_attention_byte_formula_equals_counted_bytes(nodes, naive):
    model = naive.Model(1, 8, 2, 16, 0, 0)
    round = naive.Round(prefix=90, beams=3, length=5, nodes=nodes)
    alone, tree = (
        make_problem("cpu", "chain", [90] * rows, n, (8, 2), 16, FP16)
        for rows, n in ((round.beams, round.length), (1, nodes))
    )
    for problem, expected in zip((alone, tree), naive.attention(model, round), strict=True):
        with pretend(KNOWN[naive.ARCH]), recorded_accesses() as launches:
            problem.run("triton", tree_attention)
        (launch,) = launches
        assert launch.operand("k_ptr").loaded + launch.operand("v_ptr").loaded == expected


def test_head_byte_formula_equals_counted_bytes(naive):
    model, round = naive.Model(1, 1, 1, 1, 32, 1000), naive.Round(beams=5)
    hidden, weight = torch.randn(5, 32).half(), torch.randn(1000, 32).half()
    naively, ours = naive.head(model, round)
    with recorded_accesses() as launches:
        logits = launch_skinny_linear(hidden, weight)
        _copy_kernel[(40,)](logits, torch.empty_like(logits), logits.numel(), BLOCK=128)
        lm_head_topk(hidden, weight, round.beams, impl="triton")
    linear, read, tiles, merge = launches
    assert linear.operand("out_ptr").stored + read.operand("x_ptr").loaded == naively
    lists = [
        launch.operand(f"{name}_ptr")
        for launch in (tiles, merge)
        for name in ("keys", "maxima", "sums")
    ]
    counted = sum(x.distinct_loaded + x.distinct_stored for x in lists)
    # Less where a row takes several tokens of one tile.
    assert 0.9 * ours < counted <= ours


def test_commit_byte_formula_equals_counted_bytes(naive):
    model = naive.Model(2, 1, 3, 16, 0, 0)
    round = naive.Round(prefix=20, nodes=9, accepted=4)
    kv = torch.randn(2, 2, 1, 3, 25, 16).half()
    path = torch.tensor([[0, 2, 3, 4, 5, -1, -1, -1, -1]])
    naively, ours = naive.commit(model, round)
    lengths, prefix = torch.tensor([4]), torch.tensor([20])
    with recorded_accesses() as launches:
        _copy_kernel[(-(-kv.numel() // 128),)](kv, torch.empty_like(kv), kv.numel(), BLOCK=128)
        commit_kv(torch.cat([kv, kv], 4), path, lengths, prefix_lens=prefix, impl="triton")
    clone, move = launches
    assert clone.operand("x_ptr").loaded + clone.operand("out_ptr").stored == naively
    moved = move.operand("kv_ptr")
    assert moved.loaded + moved.stored == ours
