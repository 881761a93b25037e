"""Tree attention as an op: registration, compilation, errors, and the module on top."""

import dataclasses

import pytest
import torch

from attention_problems import make_problem, with_shared
from ladder import check_compiles_whole, check_never_silent, check_op, every_way
from specdec_kernels import tree_attention
from specdec_kernels._ops import ops
from specdec_kernels.tree_attention import TreeAttention, tree_attention_lse


def test_empty_batch_gives_empty_result(kernel_device):
    problem = make_problem(kernel_device, size=16)
    tree = {name: x[:0] for name, x in problem.tree.items()}
    empty = dataclasses.replace(problem, q=problem.q[:0], tree=tree)
    assert [list(x.shape) for x in empty.run("triton")] == [[0, 13, 4, 16], [0, 13, 4]]


@pytest.mark.parametrize("shared", [False, True])
def test_ops_pass_opcheck(shared, kernel_device):
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


@every_way
def test_compiles_with_fullgraph(impl, dynamic, kernel_device):
    module = TreeAttention(scale=0.3, window=20, split_policy="fixed", impl=impl)

    def attend(q, k, v, tree):
        return module(q, k, v, **tree)

    variants = [
        make_problem(kernel_device, "random", prefixes, nodes, (2, 1), 16)
        for prefixes, nodes in (((9, 30), 5), ((9, 30, 7), 8))
    ]
    check_compiles_whole(attend, *((x.q, x.k, x.v, x.tree) for x in variants), dynamic=dynamic)


def test_module_equals_the_function(kernel_device):
    problem = make_problem(kernel_device, size=16, softcap=2.0, window=30)
    module = TreeAttention(softcap=2.0, window=30, impl="triton")
    found = module(problem.q, problem.k, problem.v, **problem.tree)
    assert torch.equal(found, problem.run("triton", tree_attention))
    assert "window=30" in repr(module)
    shared = with_shared(problem, [1, 1], [8, 8])
    found = module(problem.q, problem.k, problem.v, **shared.tree)
    assert torch.equal(found, shared.run("triton", tree_attention))


def test_error_names_the_bad_argument(kernel_device):
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
