"""No kernel reads or writes outside its operands: every access of every program, and proofs where there can be any."""

from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
import triton
import triton.language as tl

from kernel_edges import EDGES
from specdec_kernels.device.skinny_linear import launch_skinny_linear
from specdec_kernels.early_exit.kernel import launch_exit
from specdec_kernels.gpu import KNOWN, pretend
from specdec_kernels.lm_head import HeadWeights
from specdec_kernels.lm_head.kernel import launch_head_tiles
from specdec_kernels.testing import cases
from specdec_kernels.testing.accesses import recorded_accesses, recorded_proofs, unavailable
from specdec_kernels.tree_attention.merge import launch_merge

pytestmark = [
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
    # Inputs at random overflow, and rows that have stopped leave theirs unwritten.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
needs_solver = pytest.mark.skipif(
    not triton.__version__.startswith("3.7."),
    reason="tilelens' solver does not know what other interpreters than Triton 3.7's do",
)
# Of each op a kernel, and an argument that one more makes wrong.
SPOILED = {
    "accept_tree": ("N65-ragged", "accept_tree.kernel", "_accept_tree_kernel", "words"),
    "beam_step": ("W5-K13-ragged", "beam_step.kernel", "_beam_step_kernel", "candidates"),
    "commit_kv": ("full-ragged-D80", "commit_kv.kernel", "_commit_kv_kernel", "nodes"),
    "coupled_log_probs": (
        "W5-k13",
        "coupled_log_probs.kernel",
        "_coupled_log_probs_kernel",
        "count",
    ),
    "draft_step": ("R65-E33", "device.skinny_linear", "_skinny_linear_kernel", "features"),
    "early_exit": ("empty-and-full", "early_exit.kernel", "_exit_kernel", "tiles"),
    "lm_head": ("R65-V129-k3", "lm_head.kernel", "_head_tiles_kernel", "vocabulary"),
    "pack_tree": ("K63-N5", "pack_tree.kernel", "_pack_tree_kernel", "count"),
    "pick_tokens": ("R3-V129", "pick_tokens.kernel", "_pick_tiles_kernel", "vocabulary"),
    "tree_attention": ("empty-N1", "tree_attention.kernel", "_tree_attention_kernel", "nodes"),
}


class Spoiled:
    """A kernel that is launched with one argument too large."""

    def __init__(self, kernel, argument):
        self.kernel, self.argument = kernel, argument

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            given = {**dict(zip(self.kernel.arg_names, args, strict=False)), **kwargs}
            self.kernel[grid](**{**given, self.argument: given[self.argument] + 1})

        return launch


@triton.jit
def _copy_kernel(x_ptr, out_ptr, n, slack, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + o, tl.load(x_ptr + o, mask=o < n + slack, other=0.0), mask=o < n)


def outside(call):
    with pretend(KNOWN["sm_90"]), recorded_accesses() as launches:
        call()
    assert launches
    return [line for launch in launches for line in launch.outside]


@pytest.mark.parametrize("edge", [(op, edge) for op in EDGES for edge in EDGES[op]], ids="-".join)
def test_every_access_is_within_its_operand(edge):
    op, name = edge
    assert not outside(EDGES[op][name])


@pytest.mark.parametrize("op", SPOILED)
def test_out_of_bounds_access_is_detected(op, monkeypatch):
    edge, module, name, argument = SPOILED[op]
    module = import_module(f"specdec_kernels.{module}")
    monkeypatch.setattr(module, name, Spoiled(getattr(module, name), argument))
    found = outside(EDGES[op][edge])
    assert found and all(line.startswith(name) for line in found)


def test_access_to_neighbouring_memory_counts_as_out_of_bounds():
    buffer, out = torch.zeros(200), torch.empty(100)
    assert not outside(lambda: _copy_kernel[(4,)](buffer[:100], out, 100, 0, BLOCK=32))
    found = outside(lambda: _copy_kernel[(4,)](buffer[:100], out, 100, 5, BLOCK=32))
    assert found == ["_copy_kernel, program (3, 0, 0): load of x_ptr, 5 of 9 numbers outside"]


def head(rows, vocabulary):
    return lambda: launch_head_tiles(
        torch.zeros(rows, 40), HeadWeights(torch.zeros(vocabulary, 40)), 2
    )


def linear(rows, features, depth):
    x, residual = torch.zeros(rows, depth), torch.zeros(rows, features - 3)
    weight, bias = torch.zeros(features, depth), torch.zeros(features)
    batched = {"part": torch.zeros(1, features), "context": torch.zeros(1, 3)}
    return lambda: launch_skinny_linear(x, weight, bias=bias, residual=residual, silu=True, **batched)  # fmt: skip


def merge(splits, size):
    partial, stats = torch.zeros(splits, 6, size), torch.zeros(splits, 2, 6)
    out, lse, prefixes = torch.zeros(1, 3, 2, size), torch.zeros(1, 3, 2), torch.tensor([700])
    trees = (prefixes, torch.tensor([0]), None, None)
    return lambda: launch_merge(partial, stats, out, lse, trees, 1 << 20, 0)


def leave(rows, tiles):
    keys, sums = torch.zeros(rows, tiles, 1, dtype=torch.int64), torch.ones(rows, tiles)
    positions, tokens = torch.zeros(2, rows, dtype=torch.int64)
    idle = torch.zeros_like(positions)
    written = (positions, torch.zeros(rows, dtype=torch.bool), tokens, torch.zeros(rows))
    return lambda: launch_exit(keys, sums, sums, None, idle, *written, 0.5)


PROVEN = {
    "_head_tiles_kernel": [head(1, 1), head(65, 129), head(16, 1024)],
    "_skinny_linear_kernel": [linear(1, 4, 5), linear(65, 130, 33), linear(16, 128, 256)],
    "_merge_splits_kernel": [merge(2, 16), merge(3, 80)],
    "_exit_kernel": [leave(1, 1), leave(3, 100)],
}


@needs_solver
@pytest.mark.parametrize("kernel", PROVEN)
def test_bounds_are_proven_for_kernels_with_static_addresses(kernel):
    for launch in PROVEN[kernel]:
        with pretend(KNOWN["sm_90"]), recorded_proofs() as proofs:
            launch()
        assert proofs == {kernel: []}


@needs_solver
def test_out_of_bounds_kernel_is_not_proven(monkeypatch):
    x, out = torch.zeros(100), torch.empty(100)
    with recorded_proofs() as proofs:
        _copy_kernel[(4,)](x, out, 100, 5, BLOCK=32)
    assert proofs == {"_copy_kernel": ["Load of x_ptr"]}
    module = import_module("specdec_kernels.lm_head.kernel")
    spoiled = Spoiled(module._head_tiles_kernel, "vocabulary")
    monkeypatch.setattr(module, "_head_tiles_kernel", spoiled)
    with recorded_proofs() as proofs:
        head(16, 300)()
    assert proofs["_head_tiles_kernel"]


def test_every_op_has_edge_cases_and_an_out_of_bounds_case():
    ops = {module.name for module in iter_modules(cases.__path__)}
    assert set(EDGES) == set(SPOILED) == ops
