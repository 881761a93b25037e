"""The acceptance kernel against its reference, which other tests hold against walking down the tree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder import check_compiles_whole, check_never_silent, check_op, every_way
from specdec_kernels import accept_tree, ancestor_matrix, pack_bits
from specdec_kernels._ops import ops
from specdec_kernels.testing.poison import poisoned_empty
from specdec_kernels.testing.trees import KINDS, depths, make_parents


def make_tree(kind, batch, nodes, seed, device, vocabulary=3):
    """Trees of several sizes with garbage beyond them, and picks that follow a path for a while."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, nodes + 1, (batch,), generator=generator)
    sizes[0] = nodes
    parents = torch.stack([make_parents(kind, nodes, generator) for _ in range(batch)])
    real = torch.arange(nodes) < sizes[:, None]
    parents = torch.where(real, parents, -1)
    tokens = torch.randint(0, vocabulary, (batch, nodes), generator=generator)
    if kind == "star":  # children of one node differ
        tokens = torch.arange(nodes).expand(batch, -1).contiguous()
    picked = torch.randint(0, vocabulary, (batch, nodes), generator=generator)
    # Agree along the path to some node, so that long paths occur.
    for row in range(batch):
        node = int(torch.randint(0, int(sizes[row]), (1,), generator=generator))
        while node > 0:
            picked[row, parents[row, node]] = tokens[row, node]
            node = int(parents[row, node])
    depth, ancestors = depths(parents), pack_bits(ancestor_matrix(parents))
    tokens, picked = torch.where(real, tokens, 1 << 60), torch.where(real, picked, 1 << 60)
    return [x.to(device) for x in (tokens, parents, depth, ancestors, sizes, picked)]


def assert_same(inputs):
    with poisoned_empty():
        found = accept_tree(*inputs, impl="triton")
    for x, y in zip(found, accept_tree(*inputs, impl="reference"), strict=True):
        assert torch.equal(x, y)


@pytest.mark.sampled
@pytest.mark.parametrize("nodes", [1, 2, 63, 64, 65, 128, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_equals_reference(kind, nodes, kernel_device):
    if kind == "random":  # siblings with one token would be no tree that packing makes
        inputs = make_tree(kind, 3, nodes, nodes, kernel_device, vocabulary=10**9)
    else:
        inputs = make_tree(kind, 3, nodes, nodes, kernel_device)
    assert_same(inputs)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 130), st.integers(0, 10**6))
def test_kernel_equals_reference_on_random_trees(kernel_device, kind, batch, nodes, seed):
    assert_same(make_tree(kind, batch, nodes, seed, kernel_device, vocabulary=10**9))


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("nodes", [1, 9, 70])
def test_padding_rows_emit_nothing(nodes, impl, kernel_device):
    inputs = make_tree("random", 4, nodes, 3, kernel_device, vocabulary=10**9)
    expected = accept_tree(*inputs, impl=impl)
    padded = [x.clone() for x in inputs]
    for x in padded:
        x[[0, 2]] = 1 << 60
    padded[1][[0, 2]] = -1  # parents are looked up
    padded[4][[0, 2]] = 0
    with poisoned_empty():
        path, lengths, next_tokens = found = accept_tree(*padded, impl=impl)
    assert (path[[0, 2]] == -1).all()
    assert lengths[[0, 2]].tolist() == next_tokens[[0, 2]].tolist() == [-1, -1]
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x[[1, 3]], y[[1, 3]])


TWINS = {
    # Parents, tokens, what the target picked after each node; the path.
    "two-leaves": ([-1, 0, 0], [0, 5, 5], [5, 7, 8], [0, 1]),
    "first-goes-on": ([-1, 0, 0, 1, 2], [0, 5, 5, 6, 6], [5, 6, 6, 9, 9], [0, 1, 3]),
    "children-in-other-order": ([-1, 0, 0, 2, 1], [0, 5, 5, 6, 6], [5, 6, 6, 9, 9], [0, 1, 4]),
    "only-the-second-goes-on": ([-1, 0, 0, 2], [0, 5, 5, 6], [5, 6, 6, 9], [0, 1]),
    "three-and-two": (
        [-1, 0, 0, 0, 1, 1, 3], [0, 5, 5, 5, 6, 6, 6], [5, 6, 6, 6, 1, 1, 1], [0, 1, 4],
    ),
    "wrong-twins": ([-1, 0, 0, 0], [0, 4, 4, 5], [5, 4, 4, 9], [0, 3]),
}  # fmt: skip


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS)
def test_first_of_siblings_with_equal_tokens_is_accepted(twins, impl, kernel_device):
    *columns, expected = twins
    parents, tokens, picked = (torch.tensor([x], device=kernel_device) for x in columns)
    sizes = torch.tensor([parents.shape[1]], device=kernel_device)
    tree = (tokens, parents, depths(parents), pack_bits(ancestor_matrix(parents)), sizes)
    path, lengths, next_tokens = accept_tree(*tree, picked, impl=impl)
    assert path[0].tolist() == expected + [-1] * (parents.shape[1] - len(expected))
    assert lengths.tolist() == [len(expected) - 1]
    assert next_tokens.tolist() == [picked[0, expected[-1]]]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 90), st.integers(0, 10**6))
def test_kernel_equals_reference_with_duplicate_sibling_tokens(
    kernel_device, kind, batch, nodes, seed
):
    inputs = make_tree(kind, batch, nodes, seed, kernel_device, vocabulary=2)
    inputs[0] = inputs[0] % 2
    inputs[4] = torch.where(inputs[4] % 5 == 0, 0, inputs[4])
    assert_same(inputs)


def test_inputs_may_be_strided(kernel_device):
    inputs = make_tree("random", 2, 70, 5, kernel_device, vocabulary=10**9)
    sliced = [torch.stack([x, x], -1)[..., 0] for x in inputs]
    assert not sliced[0].is_contiguous()
    assert_same(sliced)


def test_op_passes_opcheck(kernel_device):
    inputs = make_tree("random", 2, 70, 5, kernel_device, vocabulary=10**9)
    check_op(ops.accept_tree, *inputs)
    check_op(ops.accept_tree, *(torch.stack([x, x], -1)[..., 0] for x in inputs))


@every_way
def test_compiles_with_fullgraph(impl, dynamic, kernel_device):
    check_compiles_whole(
        lambda *inputs: accept_tree(*inputs, impl=impl),
        make_tree("random", 2, 9, 5, kernel_device, vocabulary=10**9),
        make_tree("random", 3, 12, 5, kernel_device, vocabulary=10**9),
        dynamic=dynamic,
    )


def test_error_names_the_bad_argument(kernel_device):
    inputs = make_tree("chain", 2, 5, 0, kernel_device)
    check_never_silent(lambda impl: accept_tree(*inputs, impl=impl))
    with pytest.raises(ValueError, match=r"ancestors: expected shape \[2, 5, 1\], got \[2, 5, 2\]"):
        accept_tree(*inputs[:3], torch.cat([inputs[3]] * 2, -1), *inputs[4:])
    with pytest.raises(TypeError, match="sizes: expected int64, got torch.int32"):
        accept_tree(*inputs[:4], inputs[4].int(), inputs[5])
    with pytest.raises(ValueError, match="device: expected all tensors on one device, got"):
        accept_tree(*inputs[:5], inputs[5].to("meta"))
