"""The attention kernels against float64, beside what the reference makes of the same inputs in the same dtype."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder import check_compiles_whole, check_never_silent, check_op
from specdec_kernels import ancestor_matrix, pack_bits, tree_attention
from specdec_kernels._ops import ops
from specdec_kernels.gpu import INTERPRETER, KNOWN, pretend
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import poisoned_empty
from specdec_kernels.testing.trees import KINDS, depths, make_parents
from specdec_kernels.tree_attention import TreeAttention, tree_attention_lse
from specdec_kernels.tree_attention.tiles import _cheapest_splits, choose_splits, choose_tiles

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclasses.dataclass
class Problem:
    """One call: queries, caches without NaN, and the arguments that say which slots count."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    tree: dict
    options: dict

    def run(self, impl, function=tree_attention_lse, dtype=None, **options):
        q, k, v = (x if dtype is None else x.to(dtype) for x in (self.q, self.k, self.v))
        return function(q, k, v, **self.tree, **{**self.options, **options}, impl=impl)

    def poison(self):
        """Fill every slot that nobody may read with NaN."""
        used = torch.zeros(self.k.shape[0], self.k.shape[2], dtype=torch.bool)
        nodes, tree = self.q.shape[1], self.tree
        for b, prefix in enumerate(tree["prefix_lens"].tolist()):
            shared = 0
            if "shared_rows" in tree and tree["shared_rows"][b] >= 0:
                shared = int(tree["shared_lens"][b])
                used[tree["shared_rows"][b], :shared] = True
            used[tree["cache_rows"][b], shared : prefix + nodes] = True
        k, v = self.k.clone(), self.v.clone()
        for cache in (k, v):
            cache.transpose(1, 2)[~used.to(cache.device)] = torch.nan
        return dataclasses.replace(self, k=k, v=v)


def make_problem(
    device, kind="random", prefixes=(37, 70), nodes=13, heads=(4, 2), size=64, dtype=FP32, seed=0,
    parents=None, **options,
):  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    batch, slots = len(prefixes), max(prefixes) + nodes + 3
    if parents is None:
        parents = torch.stack([make_parents(kind, nodes, generator) for _ in prefixes])
    q = torch.randn(batch, heads[0], nodes, size, generator=generator).to(device, dtype)
    k, v = torch.randn(2, batch + 1, heads[1], slots, size, generator=generator).to(device, dtype)
    tree = {
        "prefix_lens": torch.tensor(prefixes),
        "ancestors": pack_bits(ancestor_matrix(parents)),
        "depth": depths(parents),
        "cache_rows": torch.randperm(batch + 1, generator=generator)[:batch],
    }
    tree = {name: x.to(device) for name, x in tree.items()}
    return Problem(q.transpose(1, 2), k, v, tree, options)


def assert_right(problem, **options):
    """No worse than the reference, and nothing read that is not there or left unwritten."""
    with poisoned_empty():
        found = problem.poison().run("triton", **options)
    reference = problem.run("reference")
    exact = problem.run("reference", dtype=torch.float64)
    for x, like, truth in zip(found, reference, exact, strict=True):
        assert x.is_contiguous()
        assert_no_worse(x, like, truth)
    return found


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
@pytest.mark.parametrize(
    ("nodes", "heads", "size"),
    [(1, (9, 3), 64), (5, (7, 1), 80), (13, (4, 4), 96), (9, (8, 1), 128), (3, (4, 1), 256)],
    ids=str,
)
def test_kernel_is_no_worse_than_reference(nodes, heads, size, dtype, kernel_device):
    assert_right(make_problem(kernel_device, nodes=nodes, heads=heads, size=size, dtype=dtype))


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("size", [1, 8, 24, 40, 120])
def test_heads_of_any_size(size, dtype, kernel_device):
    problem = make_problem(
        kernel_device, prefixes=(300, 37), nodes=5, heads=(2, 1), size=size, dtype=dtype, window=290
    )
    with pretend(INTERPRETER._replace(processors=1)):
        assert_right(problem)  # one split writes results itself
    assert_right(problem, split_policy="fixed")


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_tiles_fit_little_shared_memory(size, itemsize):
    for kilobytes in (64, 99):
        gpu = KNOWN["sm_80"]._replace(shared_bytes=kilobytes * 1024)
        tiles = choose_tiles(256, size, itemsize, gpu, "auto")
        keys_and_values = 2 * (tiles.stages - 1) * tiles.block_n
        assert size * itemsize * (keys_and_values + tiles.block_m) < gpu.shared_bytes


def test_splits_are_chosen_anew_only_where_there_may_be_more_of_them():
    tiles, gpu = choose_tiles(64, 128, 2, KNOWN["sm_90"], "auto"), KNOWN["sm_90"]
    _cheapest_splits.cache_clear()
    for slots in range(4097, 4097 + 256):
        choose_splits(8, slots, tiles, gpu, "auto")
    assert _cheapest_splits.cache_info().misses == 1


@pytest.mark.parametrize("nodes", [1, 63, 64, 65, 128, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_trees_of_every_kind_and_size(kind, nodes, kernel_device):
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
def test_any_tree(kernel_device, kind, prefixes, nodes, heads, window, softcap, seed):
    # Large heads and a further row: of a few numbers the reference's own error is no measure.
    assert_right(
        make_problem(
            kernel_device, kind, [*prefixes, 61], nodes, heads, 128, FP32, seed,
            window=window, softcap=softcap, scale=0.3,
        )
    )  # fmt: skip


@pytest.mark.parametrize("window", [1, 64, 300, 2**40])
@pytest.mark.parametrize("policy", ["auto", "fixed"])
def test_windows(policy, window, kernel_device):
    problem = make_problem(kernel_device, "chain", (330, 2), 40, (1, 1), 16, BF16, 1, window=window)
    assert_right(problem, split_policy=policy)


@pytest.mark.parametrize("softcap", [0.5, 50.0])
def test_softcaps(softcap, kernel_device):
    problem = make_problem(kernel_device, size=32, softcap=softcap, scale=1.0)
    assert_right(problem)


def test_a_negative_scale(kernel_device):
    assert_right(make_problem(kernel_device, size=16, scale=-0.7))


@pytest.mark.parametrize("processors", [1, 4, 132])
def test_any_number_of_splits(processors, kernel_device):
    problem = make_problem(kernel_device, "random", (1290, 513, 0), 9, (1, 1), 16, FP32, 2)
    with pretend(INTERPRETER._replace(processors=processors)):
        assert_right(problem)


@pytest.mark.parametrize("prefix", [0, 1, 255, 256, 257, 513])
def test_prefixes_at_the_edges_of_splits(prefix, kernel_device):
    assert_right(
        make_problem(kernel_device, "random", (prefix, 300), 5, (1, 1), 16, FP32),
        split_policy="fixed",
    )


@pytest.mark.parametrize("window", [None, 100], ids="window-{}".format)
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_fixed_splits_give_the_same_bits_beside_anything(dtype, window, kernel_device):
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


@pytest.mark.parametrize("policy", ["auto", "fixed"])
def test_runs_repeat_to_the_bit(policy, kernel_device):
    problem = make_problem(kernel_device, "random", (600, 97), 9, split_policy=policy)
    for x, y in zip(problem.run("triton"), problem.run("triton"), strict=True):
        assert torch.equal(x, y)


def with_shared(problem, shared_rows, shared_lens):
    device = problem.q.device
    tree = {
        **problem.tree,
        "shared_rows": torch.tensor(shared_rows, device=device),
        "shared_lens": torch.tensor(shared_lens, device=device),
    }
    return dataclasses.replace(problem, tree=tree)


@pytest.mark.parametrize("policy", ["auto", "fixed"])
@pytest.mark.parametrize("options", [{}, {"window": 90, "softcap": 3.0}], ids=str)
@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_shared_prefixes(dtype, options, policy, kernel_device):
    problem = make_problem(
        kernel_device, "random", (270, 41, 261, 290, 77), 5, (3, 1), 16, dtype, 4, **options
    )
    own = int(problem.tree["cache_rows"][1])
    # Two groups in one cache row, a row that only says so, one without, and one that is its own.
    shared = with_shared(problem, [0, own, 0, 0, -1], [261, 0, 261, 33, 50])
    assert_right(shared, split_policy=policy)


def test_a_shared_prefix_equals_its_copies(kernel_device):
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


def test_forty_trees_share_a_prefix(kernel_device):
    problem = make_problem(kernel_device, "star", (20,) * 40, 3, (2, 1), 16, FP32, 6)
    assert_right(with_shared(problem, [7, 40] * 20, [20, 13] * 20))


def test_siblings_may_be_listed_in_any_order(kernel_device):
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


def test_a_tree_is_its_branches_run_as_chains(kernel_device):
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


def test_large_scores_stay_finite(kernel_device):
    problem = make_problem(kernel_device, size=16, scale=300.0)
    assert_right(problem)


def test_caches_may_be_slices(kernel_device):
    problem = make_problem(kernel_device, size=16)
    kv = torch.full((2, 2, *problem.k.shape[:2], 90, 32), torch.nan, device=kernel_device)
    kv[1, 0, ..., : problem.k.shape[2], 8:24] = problem.k
    kv[1, 1, ..., : problem.k.shape[2], 8:24] = problem.v
    sliced = dataclasses.replace(problem, k=kv[1, 0, ..., 8:24], v=kv[1, 1, ..., 8:24])
    for x, y in zip(sliced.run("triton"), problem.run("triton"), strict=True):
        assert torch.equal(x, y)


def test_rows_are_the_first_ones_where_none_are_named(kernel_device):
    problem = make_problem(kernel_device, size=16)
    named = {**problem.tree, "cache_rows": torch.arange(2, device=kernel_device)}
    unnamed = {name: x for name, x in problem.tree.items() if name != "cache_rows"}
    expected, _ = dataclasses.replace(problem, tree=named).run("triton")
    assert torch.equal(dataclasses.replace(problem, tree=unnamed).run("triton")[0], expected)


def test_the_kernel_does_not_look_at_a_mask(kernel_device):
    problem = make_problem(kernel_device, size=16)
    garbage = torch.full((2, 26, 86), torch.nan, device=kernel_device)
    expected = problem.run("triton", tree_attention)
    assert torch.equal(problem.run("triton", tree_attention, mask=garbage), expected)


def test_an_empty_batch(kernel_device):
    problem = make_problem(kernel_device, size=16)
    tree = {name: x[:0] for name, x in problem.tree.items()}
    empty = dataclasses.replace(problem, q=problem.q[:0], tree=tree)
    assert [list(x.shape) for x in empty.run("triton")] == [[0, 13, 4, 16], [0, 13, 4]]


@pytest.mark.parametrize("shared", [False, True])
def test_ops_are_registered_as_torch_wants(shared, kernel_device):
    problem = make_problem(kernel_device, nodes=5, size=16)
    if shared:
        problem = with_shared(problem, [1, 1], [8, 8])
    tree = [
        problem.tree.get(name)
        for name in (
            "prefix_lens",
            "ancestors",
            "depth",
            "cache_rows",
            "shared_rows",
            "shared_lens",
        )
    ]
    caches = (problem.k, problem.v)
    check_op(ops.tree_attention, problem.q, *caches, *tree, 0.25, None, 9, "auto")
    check_op(
        ops.tree_attention_lse, problem.q.contiguous(), *caches, *tree, 0.25, 2.0, None, "auto"
    )


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_compiles_whole(impl, kernel_device):
    module = TreeAttention(scale=0.3, window=20, split_policy="fixed", impl=impl)

    def attend(q, k, v, tree):
        return module(q, k, v, **tree)

    variants = [
        make_problem(kernel_device, "random", prefixes, nodes, (2, 1), 16)
        for prefixes, nodes in (((9, 30), 5), ((9, 30, 7), 8))
    ]
    check_compiles_whole(attend, *((x.q, x.k, x.v, x.tree) for x in variants))


def test_the_module_is_the_function(kernel_device):
    problem = make_problem(kernel_device, size=16, softcap=2.0, window=30)
    module = TreeAttention(softcap=2.0, window=30, impl="triton")
    found = module(problem.q, problem.k, problem.v, **problem.tree)
    assert torch.equal(found, problem.run("triton", tree_attention))
    assert "window=30" in repr(module)
    shared = with_shared(problem, [1, 1], [8, 8])
    found = module(problem.q, problem.k, problem.v, **shared.tree)
    assert torch.equal(found, shared.run("triton", tree_attention))


def test_bad_arguments_are_named(kernel_device):
    problem = make_problem(kernel_device, size=16)
    check_never_silent(problem.run)

    def fails(error, text, impl="triton", q=problem.q, k=problem.k, v=problem.v, **changes):
        arguments = {**problem.tree, **changes}
        for function in (tree_attention, tree_attention_lse):
            with pytest.raises(error, match=text):
                function(q, k, v, **arguments, impl=impl)

    rows, lens = problem.tree["cache_rows"], problem.tree["prefix_lens"]
    fails(
        ValueError, r"q: expected shape \[B, N >= 1, H, D\], got \[2, 13, 4\]", q=problem.q[..., 0]
    )
    fails(ValueError, "q: expected at most the cache's 7 slots, got 13 nodes",
          k=problem.k[:, :, :7], v=problem.v[:, :, :7])  # fmt: skip
    fails(ValueError, "q: expected at most 1 rows as in k_cache, got 2", cache_rows=None,
          k=problem.k[:1], v=problem.v[:1])  # fmt: skip
    fails(ValueError, r"prefix_lens: expected shape \[2\], got \[1\]", prefix_lens=lens[:1])
    fails(ValueError, r"ancestors: expected shape \[2, 13, 1\]",
          ancestors=problem.tree["ancestors"].repeat(1, 1, 2))  # fmt: skip
    fails(TypeError, "cache_rows: expected int64, got torch.int32", cache_rows=rows.int())
    fails(ValueError, "shared_rows, shared_lens: expected both or neither", shared_rows=rows)
    fails(ValueError, r"shared_lens: expected shape \[2\], got \[1\]", shared_rows=rows,
          shared_lens=lens[:1])  # fmt: skip
    fails(ValueError, "window: expected at least 1, got 0", window=0)
    fails(ValueError, "split_policy: expected 'auto' or 'fixed', got 'most'", split_policy="most")
    fails(TypeError, "k_cache: expected torch.float32 as q, got torch.float16", k=problem.k.half())
    fails(TypeError, "q: expected float32, float16 or bfloat16 in a kernel, got torch.float64",
          q=problem.q.double(), k=problem.k.double(), v=problem.v.double())  # fmt: skip
    fails(ValueError, "v_cache: expected a contiguous last dimension",
          v=problem.v.mT.contiguous().mT)  # fmt: skip
    wide = {name: getattr(problem, name).repeat(1, 1, 1, 17) for name in "qkv"}
    fails(ValueError, "q: expected heads of 1 to 256 in a kernel, got 272", **wide)
    fails(ValueError, r"expected two tensors \[rows, G >= 1, S, 16\] with G dividing 4, got \[3, 0",
          k=problem.k[:, :0], v=problem.v[:, :0])  # fmt: skip
    fails(ValueError, "gradients are recorded", q=problem.q.clone().requires_grad_())
    many = make_problem(kernel_device, "star", (3,), 257, (1, 1), 16)
    with pytest.raises(ValueError, match="q: expected at most 256 nodes in a kernel, got 257"):
        many.run("triton")
