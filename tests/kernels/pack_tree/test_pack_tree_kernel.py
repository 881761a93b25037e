"""The packing kernel against its reference, which other tests hold against merging one by one: every bit agrees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder import check_compiles_whole, check_never_silent, check_op, every_way
from specdec_kernels import beam_parents, pack_beams, pack_tree
from specdec_kernels._ops import ops
from specdec_kernels.testing.poison import poisoned_empty
from specdec_kernels.testing.trees import KINDS, make_parents

GARBAGE = 1 << 60


def make_proposals(kind, batch, count, seed, device, vocabulary=3):
    """Proposals with equal scores among them, some invalid: full of garbage, or looking like the others."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high):
        return torch.randint(low, high, (batch, count), generator=generator)

    parents = torch.stack([make_parents(kind, count + 1, generator)[1:] for _ in range(batch)]) - 1
    valid = torch.rand(batch, count, generator=generator) > 0.1
    roots = torch.arange(batch)
    tokens = integers(0, vocabulary)
    tokens = torch.where(valid | (tokens == 0), tokens, GARBAGE)
    parents = torch.where(valid, parents, GARBAGE)
    scores = torch.where(valid, integers(-9, 1) / 2, torch.nan)
    row_depth = torch.randint(-1, 9, (batch,), generator=generator)
    tensors = (roots, tokens, parents, scores, integers(0, 5), valid, row_depth)
    return [x.to(device) for x in tensors]


def pack(tensors, impl, **options):
    roots, tokens, parents, scores, *labels = tensors
    source, valid, row_depth = (*labels, None, None, None)[:3]
    return pack_tree(
        roots,
        tokens,
        parents,
        scores,
        source=source,
        valid=valid,
        row_depth=row_depth,
        impl=impl,
        **options,
    )


def assert_same(tensors, *, capacity, max_depth, wider=0):
    width = min(capacity, tensors[1].shape[1] + 1) + wider
    options = {"capacity": capacity, "max_depth": max_depth, "width": width}
    with poisoned_empty():
        found = pack(tensors, "triton", **options)
    expected = pack(tensors, "reference", **options)
    for name, x, y in zip(found._fields, found, expected, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape, name
        assert torch.equal(x, y), name


@pytest.mark.sampled
@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_equals_reference(kind, count, kernel_device):
    tensors = make_proposals(kind, 3, count, count, kernel_device)
    assert_same(tensors, capacity=count + 1, max_depth=count)
    assert_same(tensors, capacity=count // 3 + 1, max_depth=5)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 3),
    st.integers(0, 70),
    st.integers(1, 75),
    st.integers(0, 12),
    st.integers(0, 70),
    st.integers(1, 4),
    st.integers(0, 10**6),
)
def test_kernel_equals_reference_on_random_proposals(
    kernel_device, kind, batch, count, capacity, max_depth, wider, vocabulary, seed
):
    tensors = make_proposals(kind, batch, count, seed, kernel_device, vocabulary)
    assert_same(tensors, capacity=capacity, max_depth=max_depth, wider=wider)


@pytest.mark.parametrize("max_depth", range(9))
def test_too_deep_proposals_never_create_a_node(max_depth, kernel_device):
    tensors = make_proposals("random", 3, 60, max_depth, kernel_device, vocabulary=2)[:4]
    tensors[2].clamp_(max=59)  # everything that can be is valid
    assert_same(tensors, capacity=61, max_depth=max_depth)


def test_invalid_parent_proposals_never_create_a_node(kernel_device):
    tokens = torch.tensor([[1, 1]], device=kernel_device)
    parents = torch.tensor([[9, -1]], device=kernel_device)
    tensors = [tokens[:, 0], tokens, parents, torch.zeros(1, 2, device=kernel_device)]
    assert_same(tensors, capacity=3, max_depth=2)
    assert pack(tensors, "triton", capacity=3, max_depth=2).node_of.tolist() == [[-1, 1]]


def test_kernel_packs_1024_proposals_into_256_nodes(kernel_device):
    tensors = make_proposals("random", 1, 1024, 7, kernel_device, vocabulary=2)
    assert_same(tensors, capacity=256, max_depth=40)


def test_chain_of_255_proposals_is_kept(kernel_device):
    tensors = make_proposals("chain", 1, 255, 7, kernel_device)[:4]
    tensors[1:] = [x.fill_(1) for x in tensors[1:]]
    tensors[2].copy_(torch.arange(255) - 1)
    assert_same(tensors, capacity=256, max_depth=255)
    assert_same(tensors, capacity=256, max_depth=254)
    assert pack(tensors, "triton", capacity=256, max_depth=255).sizes.tolist() == [256]


@pytest.mark.parametrize("given_labels", [(), (0,), (0, 1)])
def test_labels_validity_and_depths_are_optional(given_labels, kernel_device):
    roots, tokens, parents, scores, *labels = make_proposals("random", 2, 20, 3, kernel_device)
    parents, scores = parents.clamp(max=0).where(parents < 20, -1), scores.nan_to_num(-1)
    chosen = [x if i in given_labels else None for i, x in enumerate(labels)]
    assert_same([roots, tokens, parents, scores, *chosen], capacity=9, max_depth=4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_scores_are_packed_in_float32(dtype, kernel_device):
    tensors = make_proposals("random", 2, 30, 4, kernel_device)
    generator = torch.Generator().manual_seed(4)
    tensors[3] = torch.randn(2, 30, generator=generator).to(dtype).to(kernel_device)
    assert_same(tensors, capacity=12, max_depth=6)


def test_nodes_with_minus_infinity_or_nan_scores_are_packed(kernel_device):
    tokens = torch.tensor([[5, 1, 2, 3]], device=kernel_device)
    parents = torch.tensor([[9, -1, -1, 1]], device=kernel_device)  # the first continues nothing
    for low in (-torch.inf, torch.nan):
        scores = torch.tensor([[0.0, low, low, low]], device=kernel_device)
        tensors = [tokens[:, 0], tokens, parents, scores]
        for capacity in (2, 3, 4):
            assert_same(tensors, capacity=capacity, max_depth=3)
        for impl in ("triton", "reference"):
            tree = pack(tensors, impl, capacity=4, max_depth=3, width=4)
            assert tree.sizes.tolist() == [4]
            assert tree.scores.tolist() == [[0.0, -torch.inf, -torch.inf, -torch.inf]]


@pytest.mark.parametrize("parent", [1, 2, 3, -2, GARBAGE])
def test_proposal_whose_parent_is_not_earlier_is_invalid(parent, kernel_device):
    tokens = torch.tensor([[1, 2, 3]], device=kernel_device)
    parents = torch.tensor([[-1, parent, 1]], device=kernel_device)
    tensors = [tokens[:, 0], tokens, parents, torch.zeros(1, 3, device=kernel_device)]
    assert_same(tensors, capacity=4, max_depth=3)
    assert pack(tensors, "triton", capacity=4, max_depth=3).node_of.tolist() == [[1, -1, -1]]


def test_inputs_may_be_strided_and_expanded(kernel_device):
    tensors = make_proposals("random", 2, 20, 5, kernel_device)
    sliced = [torch.stack([x, x], -1)[..., 0] for x in tensors]
    assert not any(x.is_contiguous() for x in sliced)
    assert_same(sliced, capacity=9, max_depth=4)
    rows = [torch.stack([x, x], 1)[:, 0] for x in tensors]
    assert_same(rows, capacity=9, max_depth=4)
    assert_same([x[:1].expand_as(x) for x in tensors], capacity=9, max_depth=4)


def test_default_width_has_room_for_every_possible_node(kernel_device):
    beams = torch.tensor([[[5, 1, 2, 3], [5, 1, 2, 4], [5, 1, 6, 3]]], device=kernel_device)
    tree, unpacker = pack_beams(beams, impl="triton")
    assert tree.tokens.tolist() == [[5, 1, 2, 3, 4, 6, 3, 5, 5, 5]]
    assert tree.sizes.tolist() == [7]
    narrow, same_unpacker = pack_beams(beams, impl="reference")
    assert torch.equal(tree.tokens[:, :7], narrow.tokens)
    assert torch.equal(unpacker, same_unpacker)
    drafted = beams[:, :, 1:]
    tree = pack_tree(
        beams[:, 0, 0],
        drafted.flatten(1),
        beam_parents(drafted),
        torch.zeros(1, 9, device=kernel_device),
        capacity=8,
        max_depth=3,
        impl="triton",
    )
    assert tree.tokens.shape == (1, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_packing_can_be_captured_in_a_cuda_graph(kernel_device):
    tensors = make_proposals("random", 8, 128, 5, kernel_device)
    expected = pack(tensors, "triton", capacity=64, max_depth=8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = pack(tensors, "triton", capacity=64, max_depth=8)
    for _ in range(100):
        graph.replay()
        for x, y in zip(found, expected, strict=True):
            assert torch.equal(x, y)


def test_op_passes_opcheck(kernel_device):
    tensors = make_proposals("random", 2, 20, 5, kernel_device)
    check_op(ops.pack_tree, *tensors, 9, 4, 9)
    check_op(ops.pack_tree, *tensors[:4], None, None, None, 30, 4, 70)
    check_op(ops.pack_tree, *(x.mT.contiguous().mT if x.ndim > 1 else x for x in tensors), 9, 4, 9)


@every_way
def test_compiles_with_fullgraph(impl, dynamic, kernel_device):
    check_compiles_whole(
        lambda *tensors: tuple(pack(tensors, impl, capacity=9, max_depth=1, width=9)),
        make_proposals("random", 2, 20, 5, kernel_device),
        make_proposals("random", 3, 23, 5, kernel_device),
        dynamic=dynamic,
    )


def test_error_names_the_kernel_limit_exceeded(kernel_device):
    tensors = make_proposals("random", 1, 1025, 5, kernel_device)
    check_never_silent(
        lambda impl: pack(
            [x[..., :9] if x.ndim > 1 else x for x in tensors], impl, capacity=9, max_depth=4
        )
    )
    with pytest.raises(
        ValueError, match="tokens: expected at most 1024 proposals in the kernel, got 1025"
    ):
        pack(tensors, "triton", capacity=9, max_depth=4)
    tensors = [x[..., :300] if x.ndim > 1 else x for x in tensors]
    for options in ({"capacity": 257}, {"capacity": 9, "width": 257}):
        with pytest.raises(
            ValueError, match="capacity, width: expected at most 256 nodes in the kernel, got 257"
        ):
            pack(tensors, "triton", max_depth=4, **options)
    with pytest.raises(ValueError, match="gradients are recorded"):
        tensors[3].requires_grad_()
        pack(tensors, "triton", capacity=9, max_depth=4)
