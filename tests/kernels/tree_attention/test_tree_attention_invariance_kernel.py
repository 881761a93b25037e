"""What results of the attention kernels do not depend on: the batch, the splits, the order, padding and strides."""

import dataclasses

import pytest
import torch

from attention_problems import BF16, FP32, assert_right, make_problem, with_shared
from specdec_kernels import ancestor_matrix, tree_attention
from specdec_kernels.gpu import INTERPRETER, KNOWN, pretend
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import poisoned_empty
from specdec_kernels.testing.trees import make_parents
from specdec_kernels.tree_attention import tiles
from specdec_kernels.tree_attention.tiles import choose_splits, choose_tiles


@pytest.mark.sampled
@pytest.mark.parametrize("window", [None, 100], ids="window-{}".format)
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_fixed_splits_are_bit_identical_in_any_batch_and_tree(dtype, window, kernel_device):
    problem = make_problem(
        kernel_device, "random", (280, 97), 67, (1, 1), 16, dtype, 3,
        split_policy="fixed", window=window,
    )  # fmt: skip
    out, lse = problem.run("triton")
    for rows, nodes in ((slice(0, 2), 20), (slice(0, 1), 1), (slice(1, 2), 65)):
        tree = {name: x[rows] for name, x in problem.tree.items()}
        tree["ancestors"] = tree["ancestors"][:, :nodes, : -(-nodes // 64)]
        tree["depth"] = tree["depth"][:, :nodes]
        part = dataclasses.replace(problem, q=problem.q[rows, :nodes], tree=tree)
        found, found_lse = part.run("triton")
        assert torch.equal(found, out[rows, :nodes])
        assert torch.equal(found_lse, lse[rows, :nodes])


def test_fixed_splits_are_bounded_and_depend_only_on_own_prefix_length(kernel_device, monkeypatch):
    gpu = KNOWN["sm_90"]
    fixed_tiles = choose_tiles(16, 128, 2, gpu, "fixed")
    for slots, parts in ((1, 1), (256, 1), (257, 2), (8192, 32), (8193, 32), (131072, 32)):
        assert choose_splits(1, slots, fixed_tiles, gpu, "fixed") == parts
    monkeypatch.setattr(tiles, "MAX_FIXED_SPLITS", 2)
    problem = make_problem(
        kernel_device, "random", (700, 513, 97, 1200), 5, (1, 1), 16, FP32, 3, split_policy="fixed"
    )
    assert_right(problem)
    out, lse = problem.run("triton")
    for row, slots in ((0, 705), (1, 518), (2, 102), (2, 600)):  # shorter caches, and no other rows
        alone = {name: x[row : row + 1] for name, x in problem.tree.items()}
        q, k, v = problem.q[row : row + 1], problem.k[:, :, :slots], problem.v[:, :, :slots]
        found, found_lse = dataclasses.replace(problem, q=q, k=k, v=v, tree=alone).run("triton")
        assert torch.equal(found, out[row : row + 1])
        assert torch.equal(found_lse, lse[row : row + 1])


@pytest.mark.parametrize("policy", ["auto", "fixed"])
def test_repeated_runs_are_bit_identical(policy, kernel_device):
    problem = make_problem(kernel_device, "random", (600, 97), 9, split_policy=policy)
    for x, y in zip(problem.run("triton"), problem.run("triton"), strict=True):
        assert torch.equal(x, y)


def test_shared_prefix_equals_copied_prefixes(kernel_device):
    problem = make_problem(kernel_device, "random", (270, 300, 264), 7, (4, 2), 16, FP32, 5)
    rows = problem.tree["cache_rows"].tolist()
    for cache in (problem.k, problem.v):
        for row in rows[1:]:
            cache[row, :, :264] = cache[rows[0], :, :264]
    shared = with_shared(problem, [rows[0]] * 3, [264] * 3)
    exact = problem.run("reference", dtype=torch.float64)
    reference = problem.run("reference")
    for x, like, truth in zip(shared.run("triton"), reference, exact, strict=True):
        assert_no_worse(x, like, truth)


def test_sibling_order_does_not_change_the_result(kernel_device):
    problem = make_problem(kernel_device, "star", (45,), 20, (2, 1), 16, FP32, 7)
    order = torch.cat([torch.zeros(1), 1 + torch.randperm(19)]).long().to(kernel_device)
    k, v = problem.k.clone(), problem.v.clone()
    row = int(problem.tree["cache_rows"][0])
    for cache, before in ((k, problem.k), (v, problem.v)):
        cache[row, :, 45:65] = before[row, :, 45 + order]
    permuted = dataclasses.replace(problem, q=problem.q[:, order], k=k, v=v)
    exact = problem.run("reference", dtype=torch.float64)[0]
    assert_no_worse(
        permuted.run("triton", tree_attention),
        problem.run("reference", tree_attention)[:, order],
        exact[:, order],
    )


def test_tree_equals_its_branches_run_as_chains(kernel_device):
    prefix, nodes = 50, 30
    problem = make_problem(kernel_device, "random", (prefix,), nodes, (2, 1), 16, FP32, 8)
    row = int(problem.tree["cache_rows"][0])
    related = ancestor_matrix(make_parents("random", nodes, torch.Generator().manual_seed(8))[None])
    out = problem.run("triton", tree_attention)
    for node in (0, 11, 29):
        path = related[0, node].nonzero()[:, 0].to(kernel_device)
        chain = make_problem(kernel_device, "chain", (prefix,), len(path), (2, 1), 16)
        k, v = (x[row : row + 1].clone() for x in (problem.k, problem.v))
        for cache, before in ((k, problem.k), (v, problem.v)):
            cache[:, :, prefix : prefix + len(path)] = before[row, :, prefix + path]
        tree = {**chain.tree, "cache_rows": torch.zeros_like(chain.tree["cache_rows"])}
        chain = dataclasses.replace(chain, q=problem.q[:, path], k=k, v=v, tree=tree)
        exact = chain.run("reference", tree_attention, dtype=torch.float64)
        reference = chain.run("reference", tree_attention)
        assert_no_worse(chain.run("triton", tree_attention), reference, exact)
        assert_no_worse(out[:, path], reference, exact)


GARBAGE = 77 << 33


@pytest.mark.sampled
@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize(
    ("padding", "processors"), [([0], 1), ([1, 3], 132), ([0, 1, 2, 3], 132), ([0, 1, 2, 3], 1)]
)
def test_padding_rows_are_zero_and_do_not_affect_other_rows(
    padding, processors, shared, impl, kernel_device
):
    problem = make_problem(
        kernel_device, "random", (270, 300, 264, 265), 7, (4, 2), 16, FP32, 9, window=280
    )
    if shared:
        row = int(problem.tree["cache_rows"][2])
        problem = with_shared(problem, [row, row, row, -1], [100, 100, 90, GARBAGE])
    tree = {name: x.clone() for name, x in problem.tree.items()}
    for name, x in tree.items():
        if not name.startswith("shared"):  # padding may name a prefix that others share
            x[padding] = -1 if name == "cache_rows" else GARBAGE
    padded = dataclasses.replace(problem, q=problem.q.clone(), tree=tree)
    padded.q[padding] = torch.nan
    others = [row for row in range(4) if row not in padding]
    with pretend(INTERPRETER._replace(processors=processors)), poisoned_empty():
        out, lse = padded.run(impl)
        expected, expected_lse = problem.run(impl)
    # Of those that share a prefix fewer fill a tile, and a window cuts it elsewhere.
    same = {} if shared else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(out[others], expected[others], **same)
    torch.testing.assert_close(lse[others], expected_lse[others], **same)
    assert (out[padding] == 0).all()
    assert (lse[padding] == -torch.inf).all()


def test_caches_may_be_strided(kernel_device):
    problem = make_problem(kernel_device, size=16)
    kv = torch.full((2, 2, *problem.k.shape[:2], 90, 32), torch.nan, device=kernel_device)
    kv[1, 0, ..., : problem.k.shape[2], 8:24] = problem.k
    kv[1, 1, ..., : problem.k.shape[2], 8:24] = problem.v
    sliced = dataclasses.replace(problem, k=kv[1, 0, ..., 8:24], v=kv[1, 1, ..., 8:24])
    for x, y in zip(sliced.run("triton"), problem.run("triton"), strict=True):
        assert torch.equal(x, y)


def test_cache_rows_default_to_the_first_rows(kernel_device):
    problem = make_problem(kernel_device, size=16)
    named = {**problem.tree, "cache_rows": torch.arange(2, device=kernel_device)}
    unnamed = {name: x for name, x in problem.tree.items() if name != "cache_rows"}
    expected, _ = dataclasses.replace(problem, tree=named).run("triton")
    assert torch.equal(dataclasses.replace(problem, tree=unnamed).run("triton")[0], expected)


def test_kernel_ignores_the_mask_argument(kernel_device):
    problem = make_problem(kernel_device, size=16)
    garbage = torch.full((2, 26, 86), torch.nan, device=kernel_device)
    expected = problem.run("triton", tree_attention)
    assert torch.equal(problem.run("triton", tree_attention, mask=garbage), expected)
