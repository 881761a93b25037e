import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec_kernels import accept_tree, pack_tree


def walk(tokens, parents, size, picked):
    """Descend from the root as long as a child holds what the target picked."""
    path = [0]
    while True:
        children = [n for n in range(1, size) if parents[n] == path[-1]]
        right = [n for n in children if tokens[n] == picked[path[-1]]]
        if not right:
            return path, picked[path[-1]]
        (only,) = right
        path.append(only)


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 3), st.integers(0, 90), st.integers(1, 4), st.integers(0, 10**6))
def test_accepted_path_equals_a_sequential_tree_walk(batch, count, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(high, shape):
        return torch.randint(0, high, shape, generator=generator)

    parents = torch.stack(
        [torch.tensor([int(draw(i + 1, ())) - 1 for i in range(count)], dtype=torch.int64) for _ in range(batch)]
    )  # fmt: skip
    tree = pack_tree(
        draw(vocabulary, (batch,)),
        draw(vocabulary, (batch, count)),
        parents,
        torch.zeros(batch, count),
        valid=torch.rand(batch, count, generator=generator) < 0.9,
        capacity=70,
        max_depth=90,
    )
    picked = draw(vocabulary, tree.tokens.shape)
    path, lengths, next_tokens = accept_tree(*tree[:5], picked)
    assert path.shape == tree.tokens.shape
    for row in range(batch):
        expected, token = walk(
            tree.tokens[row].tolist(),
            tree.parents[row].tolist(),
            int(tree.sizes[row]),
            picked[row].tolist(),
        )
        assert path[row, : len(expected)].tolist() == expected
        assert (path[row, len(expected) :] == -1).all()
        assert lengths[row] == len(expected) - 1
        assert next_tokens[row] == token


def test_padding_is_never_accepted():
    tree = pack_tree(
        torch.tensor([3]),
        torch.zeros(1, 0, dtype=torch.int64),
        torch.zeros(1, 0, dtype=torch.int64),
        torch.zeros(1, 0),
        capacity=4,
        max_depth=3,
        width=4,
    )
    path, lengths, next_tokens = accept_tree(*tree[:5], torch.full((1, 4), 3))
    assert path.tolist() == [[0, -1, -1, -1]]
    assert lengths.tolist() == [0]
    assert next_tokens.tolist() == [3]


def test_error_names_the_argument_of_wrong_shape():
    tree = pack_tree(
        torch.tensor([3]), torch.tensor([[1]]), torch.tensor([[-1]]), torch.zeros(1, 1),
        capacity=4, max_depth=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"picked: expected shape \[1, 2\], got \[1, 3\]"):
        accept_tree(*tree[:5], torch.zeros(1, 3, dtype=torch.int64))
