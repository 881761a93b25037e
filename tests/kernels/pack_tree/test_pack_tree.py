from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.tree import TokenTree
from specdec_kernels import beam_parents, pack_beams, pack_tree, unpack_bits
from tree_invariants import check_tree

GOLDEN = Path(__file__).parents[2] / "data" / "redrafter_tree.npz"


def naive_pack(root, tokens, parents, scores, valid, capacity, max_depth):
    """Merge one proposal after another in a dictionary; drop the worst leaf while there are too many."""
    nodes = {(): {"token": root, "score": 0.0, "order": -1}}
    path_of = {-1: ()}
    for i, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        path = path_of.get(parent)
        if not valid[i] or path is None or len(path) >= max_depth:
            continue
        path_of[i] = (*path, token)
        node = nodes.setdefault(path_of[i], {"token": token, "score": -np.inf, "order": i})
        node["score"] = max(node["score"], scores[i])
    rank = {}
    for path in sorted(nodes, key=len):  # a node counts at most as much as its parent
        rank[path] = min(nodes[path]["score"], rank[path[:-1]]) if path else np.inf
    while len(nodes) > capacity:
        leaves = [p for p in nodes if p and not any(q[:-1] == p for q in nodes if q)]
        worst = min(leaves, key=lambda p: (rank[p], -nodes[p]["order"]))
        del nodes[worst]
    ordered = sorted(nodes, key=lambda p: nodes[p]["order"])
    index = {path: i for i, path in enumerate(ordered)}
    node_of = [index.get(path_of.get(i), -1) for i in range(len(tokens))]
    return ordered, node_of, [nodes[p]["score"] for p in ordered]


@st.composite
def proposals(draw):
    count = draw(st.integers(0, 40))
    tokens = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    parents = [draw(st.integers(-1, i - 1)) for i in range(count)]
    scores = draw(st.lists(st.integers(-9, 0), min_size=count, max_size=count))
    valid = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    valid = [v or draw(st.booleans()) for v in valid]
    return tokens, parents, [float(s) for s in scores], valid


@settings(deadline=None, max_examples=300)
@given(proposals(), st.integers(1, 45), st.integers(0, 12))
def test_packed_tree_equals_inserting_proposals_one_by_one(proposed, capacity, max_depth):
    tokens, parents, scores, valid = proposed
    ids = torch.tensor([tokens], dtype=torch.int64).reshape(1, -1)
    tree = pack_tree(
        torch.tensor([7]),
        ids,
        torch.tensor([parents], dtype=torch.int64).reshape(1, -1),
        torch.tensor([scores]).reshape(1, -1),
        valid=torch.tensor([valid], dtype=torch.bool).reshape(1, -1),
        capacity=capacity,
        max_depth=max_depth,
    )
    check_tree(TokenTree.from_packed(tree))
    ordered, node_of, best = naive_pack(7, tokens, parents, scores, valid, capacity, max_depth)
    paths = []
    for node, parent in enumerate(tree.parents[0].tolist()):
        paths.append((*paths[parent], tree.tokens[0, node].item()) if node else ())
    assert paths == ordered
    assert tree.node_of[0].tolist() == node_of
    assert tree.scores[0].tolist() == best
    full, _, _ = naive_pack(7, tokens, parents, scores, valid, 10**9, max_depth)
    assert tree.dropped.tolist() == [len(full) - len(ordered)]


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 3), st.integers(1, 12), st.integers(1, 8), st.integers(1, 4), st.integers(0, 99)
)
def test_unpacking_a_packed_tree_restores_the_beams(batch, width, length, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    beams = torch.randint(0, vocabulary, (batch, width, length), generator=generator)
    beams[:, :, 0] = beams[:, :1, 0]
    tree, unpacker = pack_beams(beams)
    check_tree(TokenTree.from_packed(tree))
    assert torch.equal(tree.tokens.gather(1, unpacker.flatten(1)).view_as(beams), beams)
    assert torch.equal(
        tree.depth.gather(1, unpacker.flatten(1)).view_as(beams),
        torch.arange(length).expand_as(beams),
    )


@pytest.mark.parametrize("case", range(20))
def test_packing_equals_the_authors_recorded_results(case):
    golden = np.load(GOLDEN)
    beams, packed, unpacker, mask, offsets, sizes = (
        torch.from_numpy(golden[f"c{case:03}/{name}"])
        for name in ("beams", "packed", "unpacker", "mask", "position_offsets", "n_selected")
    )
    tree, ours = pack_beams(beams)
    nodes = packed.shape[1]
    assert torch.equal(tree.sizes, sizes)
    assert tree.tokens.shape[1] == nodes
    assert torch.equal(ours, unpacker)
    among_nodes = mask[..., -nodes:]  # the columns before are the prompt's padding mask
    ancestors = unpack_bits(tree.ancestors, nodes)
    for row, size in enumerate(sizes.tolist()):
        assert torch.equal(tree.tokens[row, :size], packed[row, :size])
        assert torch.equal(tree.depth[row, :size], offsets[row, :size])
        assert torch.equal(ancestors[row, :size, :size], among_nodes[row, :size, :size])
        beam = unpacker[row]
        for child, parent in zip(beam[:, 1:].flatten(), beam[:, :-1].flatten(), strict=True):
            assert tree.parents[row, child] == parent


def test_shared_prefix_is_stored_once():
    beams = torch.tensor([[[5, 1, 2, 3], [5, 1, 2, 4], [5, 1, 6, 3]]])
    tree, unpacker = pack_beams(beams)
    assert tree.tokens.tolist() == [[5, 1, 2, 3, 4, 6, 3]]
    assert tree.parents.tolist() == [[-1, 0, 1, 2, 2, 1, 5]]
    assert unpacker.tolist() == [[[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5, 6]]]


def test_expanded_beam_search_nodes_are_packed_by_parent_pointers():
    # Step 1 finds b, c; step 2 extends only c; b stays a leaf although no final beam has it.
    tree = pack_tree(
        torch.tensor([0]),
        torch.tensor([[11, 12, 13, 14]]),
        torch.tensor([[-1, -1, 1, 1]]),
        torch.tensor([[-1.0, -0.5, -0.9, -0.8]]),
        capacity=8,
        max_depth=2,
    )
    assert tree.parents.tolist() == [[-1, 0, 0, 2, 2]]
    assert tree.depth.tolist() == [[0, 1, 1, 2, 2]]


def test_static_tree_keeps_its_shape():
    parents = torch.tensor([[-1, -1, 0, 0, 2]])
    tree = pack_tree(
        torch.tensor([9]),
        torch.tensor([[1, 2, 3, 4, 5]]),
        parents,
        torch.zeros(1, 5),
        capacity=6,
        max_depth=3,
    )
    assert tree.parents.tolist() == [[-1, 0, 0, 1, 1, 3]]


def test_union_of_drafters_merges_equal_paths_and_labels_them_by_the_first():
    tree = pack_tree(
        torch.tensor([0]),
        torch.tensor([[1, 2, 1, 3]]),
        torch.tensor([[-1, 0, -1, 2]]),
        torch.zeros(1, 4),
        source=torch.tensor([[0, 0, 1, 1]]),
        capacity=8,
        max_depth=2,
    )
    assert tree.tokens.tolist() == [[0, 1, 2, 3]]
    assert tree.source.tolist() == [[-1, 0, 0, 1]]


def test_rows_are_padded_to_the_widest_and_cut_at_their_max_depth():
    beams = torch.tensor([[[1, 2, 3]], [[4, 5, 6]]])
    tree = pack_tree(
        torch.tensor([0, 0]),
        beams.flatten(1),
        beam_parents(beams),
        torch.zeros(2, 3),
        capacity=8,
        max_depth=3,
        row_depth=torch.tensor([3, 1]),
    )
    assert tree.sizes.tolist() == [4, 2]
    assert tree.tokens.tolist() == [[0, 1, 2, 3], [0, 4, 0, 0]]
    assert tree.parents.tolist() == [[-1, 0, 1, 2], [-1, 0, -1, -1]]
    assert tree.node_of.tolist() == [[1, 2, 3], [1, -1, -1]]


def test_fixed_width_pads_without_reading_sizes():
    tree = pack_tree(
        torch.tensor([3]),
        torch.tensor([[1]]),
        torch.tensor([[-1]]),
        torch.zeros(1, 1),
        capacity=8,
        max_depth=1,
        width=5,
    )
    assert tree.tokens.tolist() == [[3, 1, 3, 3, 3]]
    assert tree.sizes.tolist() == [2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parents": torch.zeros(1, 3, dtype=torch.int64)}, r"parents: expected shape \[1, 2\], got \[1, 3\]"),
        ({"capacity": 0}, "capacity: expected at least 1 node, got 0"),
        ({"max_depth": -1}, "max_depth: expected 0 or more, got -1"),
        ({"width": 1}, "width: expected at least"),
        ({"roots": torch.zeros(2, dtype=torch.int64)}, "roots, tokens: expected shapes"),
    ],
)  # fmt: skip
def test_error_names_the_bad_argument(change, message):
    arguments = {
        "roots": torch.zeros(1, dtype=torch.int64),
        "tokens": torch.zeros(1, 2, dtype=torch.int64),
        "parents": torch.full((1, 2), -1),
        "scores": torch.zeros(1, 2),
        "capacity": 4,
        "max_depth": 1,
    } | change
    tensors = [arguments.pop(name) for name in ("roots", "tokens", "parents", "scores")]
    with pytest.raises(ValueError, match=message):
        pack_tree(*tensors, **arguments)


def test_error_names_the_argument_of_wrong_dtype():
    one = torch.zeros(1, 1, dtype=torch.int64)
    arguments = {"capacity": 2, "max_depth": 1}
    with pytest.raises(TypeError, match="scores: expected floating point, got torch.int64"):
        pack_tree(one[0], one, one - 1, one, **arguments)
    with pytest.raises(TypeError, match="parents: expected int64, got torch.int32"):
        pack_tree(one[0], one, one.int() - 1, one.float(), **arguments)
    with pytest.raises(TypeError, match="valid: expected torch.bool, got torch.int64"):
        pack_tree(one[0], one, one - 1, one.float(), valid=one, **arguments)
