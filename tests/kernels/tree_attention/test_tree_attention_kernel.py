"""The attention kernels' error against float64, compared with the reference's in the same dtype."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_problems import BF16, FP16, FP32, assert_right, make_problem, with_shared
from specdec_kernels.gpu import INTERPRETER, KNOWN, pretend
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import poisoned_empty
from specdec_kernels.testing.trees import KINDS
from specdec_kernels.tree_attention.tiles import _cheapest_splits, choose_splits, choose_tiles


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
@pytest.mark.parametrize(
    ("nodes", "heads", "size"),
    [(1, (9, 3), 64), (5, (7, 1), 80), (13, (4, 4), 96), (9, (8, 1), 128), (3, (4, 1), 256)],
    ids=str,
)
def test_kernel_is_no_less_accurate_than_the_reference(nodes, heads, size, dtype, kernel_device):
    assert_right(make_problem(kernel_device, nodes=nodes, heads=heads, size=size, dtype=dtype))


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("size", [1, 8, 24, 40, 120])
def test_head_size_may_be_any_number(size, dtype, kernel_device):
    problem = make_problem(
        kernel_device, prefixes=(300, 37), nodes=5, heads=(2, 1), size=size, dtype=dtype, window=290
    )
    with pretend(INTERPRETER._replace(processors=1)):
        assert_right(problem)  # one split writes results itself
    assert_right(problem, split_policy="fixed")


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_tiles_fit_small_shared_memory(size, itemsize):
    for kilobytes in (64, 99):
        gpu = KNOWN["sm_80"]._replace(shared_bytes=kilobytes * 1024)
        chosen = choose_tiles(256, size, itemsize, gpu, "auto")
        keys_and_values = 2 * (chosen.stages - 1) * chosen.block_n
        assert size * itemsize * (keys_and_values + chosen.block_m) < gpu.shared_bytes


def test_number_of_splits_is_cached_per_range_of_lengths():
    chosen, gpu = choose_tiles(64, 128, 2, KNOWN["sm_90"], "auto"), KNOWN["sm_90"]
    _cheapest_splits.cache_clear()
    for slots in range(4097, 4097 + 256):
        choose_splits(8, slots, chosen, gpu, "auto")
    assert _cheapest_splits.cache_info().misses == 1


@pytest.mark.sampled
@pytest.mark.parametrize("nodes", [1, 63, 64, 65, 128, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tree_shape_and_size_is_accurate(kind, nodes, kernel_device):
    problem = make_problem(kernel_device, kind, (33,), nodes, (1, 1), 16, FP16, nodes)
    assert_right(problem)


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(0, 80), min_size=1, max_size=2),
    st.integers(1, 35),
    st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    st.sampled_from([None, 1, 7, 40]),
    st.sampled_from([None, 2.0]),
    st.integers(0, 10**6),
)
def test_random_trees_windows_and_softcaps_are_accurate(
    kernel_device, kind, prefixes, nodes, heads, window, softcap, seed
):
    # Large heads and a further row: of a few numbers the reference's own error is no measure.
    assert_right(
        make_problem(
            kernel_device, kind, [*prefixes, 61], nodes, heads, 128, FP32, seed,
            window=window, softcap=softcap, scale=0.3,
        )
    )  # fmt: skip


@pytest.mark.sampled
@pytest.mark.parametrize("window", [1, 64, 300, 2**40])
@pytest.mark.parametrize("policy", ["auto", "fixed"])
def test_sliding_windows_are_accurate(policy, window, kernel_device):
    problem = make_problem(kernel_device, "chain", (330, 2), 40, (1, 1), 16, BF16, 1, window=window)
    assert_right(problem, split_policy=policy)


@pytest.mark.parametrize("softcap", [0.5, 50.0])
def test_softcap_is_accurate(softcap, kernel_device):
    problem = make_problem(kernel_device, size=32, softcap=softcap, scale=1.0)
    assert_right(problem)


def test_negative_scale_is_accurate(kernel_device):
    assert_right(make_problem(kernel_device, size=16, scale=-0.7))


@pytest.mark.parametrize("processors", [1, 4, 132])
def test_any_number_of_splits_is_accurate(processors, kernel_device):
    problem = make_problem(kernel_device, "random", (1290, 513, 0), 9, (1, 1), 16, FP32, 2)
    with pretend(INTERPRETER._replace(processors=processors)):
        assert_right(problem)


@pytest.mark.parametrize("prefix", [0, 1, 255, 256, 257, 513])
def test_prefix_lengths_at_split_boundaries_are_accurate(prefix, kernel_device):
    assert_right(
        make_problem(kernel_device, "random", (prefix, 300), 5, (1, 1), 16, FP32),
        split_policy="fixed",
    )


def spacious(problem, slots):
    """The same problem in a cache with more slots, all NaN."""
    k, v = (
        torch.nn.functional.pad(x, (0, 0, 0, slots), value=torch.nan)
        for x in (problem.k, problem.v)
    )
    return dataclasses.replace(problem, k=k, v=v)


@pytest.mark.parametrize("prefix", [0, 1, 63, 64, 65, 127, 320, 383])
def test_prefix_lengths_at_tile_boundaries_ignore_slots_beyond(prefix, kernel_device):
    problem = make_problem(kernel_device, "random", (prefix, 150), 3, (2, 1), 32, FP16, prefix)
    out, lse = assert_right(problem)
    for slots in (1, 64):
        found, found_lse = spacious(problem, slots).run("triton")
        assert torch.equal(found, out) and torch.equal(found_lse, lse)


RAGGED = {"one-long": (1290, *[3] * 7), "one-short": (0, 700, 640, 575), "stairs": (0, 1, 63, 64, 65, 256, 257)}  # fmt: skip


@pytest.mark.parametrize("processors", [4, 132])
@pytest.mark.parametrize("prefixes", RAGGED.values(), ids=RAGGED)
def test_ragged_batches_in_oversized_caches_are_accurate(prefixes, processors, kernel_device):
    problem = make_problem(kernel_device, "random", prefixes, 3, (2, 1), 16, FP32, 11)
    exact = problem.run("reference", dtype=torch.float64)
    like = problem.run("reference")
    with pretend(INTERPRETER._replace(processors=processors)), poisoned_empty():
        found = spacious(problem, 700).run("triton")
    for x, y, truth in zip(found, like, exact, strict=True):
        assert_no_worse(x, y, truth)


def averages(problem, window=None):
    """With Q = K = 0 each result is the mean of the values that its node sees; slow, from what the words mean."""
    tree, nodes = problem.tree, problem.q.shape[1]
    rows = []
    for b, prefix in enumerate(tree["prefix_lens"].tolist()):
        depth = tree["depth"][b].tolist()
        slots = [(slot, slot) for slot in range(prefix)]  # slot and position
        for node in range(nodes):
            words = tree["ancestors"][b, node].tolist()
            mine = [j for j in range(nodes) if words[j // 64] >> j % 64 & 1]
            seen = slots + [(prefix + j, prefix + depth[j]) for j in mine]
            least = prefix + depth[node] - (window or 1 << 40)
            at = [slot for slot, position in seen if position > least]
            values = problem.v[tree["cache_rows"][b]][:, at].double().mean(1)
            rows.append((values, len(at)))
    group = problem.q.shape[2] // problem.v.shape[1]
    out = torch.stack([values for values, _ in rows]).repeat_interleave(group, 1)
    counts = torch.tensor([float(count) for _, count in rows], dtype=torch.float64)
    return out.unflatten(0, (-1, nodes)), counts.log().view(-1, nodes, 1).to(out.device)


@pytest.mark.sampled
@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("window", [None, 1, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_zero_queries_and_keys_average_the_visible_values(kind, window, impl, kernel_device):
    prefixes, nodes = (0, 1, 63, 64, 300), 67
    problem = make_problem(
        kernel_device, kind, prefixes, nodes, (2, 1), 16, FP32, 12, window=window
    )
    nothing = {"q": torch.zeros_like(problem.q), "k": torch.zeros_like(problem.k)}
    problem = dataclasses.replace(problem, **nothing)
    out, lse = problem.run(impl)
    expected, expected_lse = averages(problem, window)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(lse.double(), expected_lse.expand_as(lse), rtol=1e-6, atol=1e-6)


@pytest.mark.sampled
@pytest.mark.parametrize("policy", ["auto", "fixed"])
@pytest.mark.parametrize("options", [{}, {"window": 90, "softcap": 3.0}], ids=str)
@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_shared_prefixes_are_accurate(dtype, options, policy, kernel_device):
    problem = make_problem(
        kernel_device, "random", (270, 41, 261, 290, 77), 5, (3, 1), 16, dtype, 4, **options
    )
    own = int(problem.tree["cache_rows"][1])
    # Two groups in one cache row, a row that only says so, one without, and one that is its own.
    shared = with_shared(problem, [0, own, 0, 0, -1], [261, 0, 261, 33, 50])
    assert_right(shared, split_policy=policy)


def test_forty_trees_may_share_a_prefix(kernel_device):
    problem = make_problem(kernel_device, "star", (20,) * 40, 3, (2, 1), 16, FP32, 6)
    assert_right(with_shared(problem, [7, 40] * 20, [20, 13] * 20))


def test_large_scores_stay_finite(kernel_device):
    problem = make_problem(kernel_device, size=16, scale=300.0)
    assert_right(problem)
