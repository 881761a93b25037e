import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec_kernels import ancestor_matrix, pack_bits, unpack_bits


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=140))
def test_ancestor_matrix_follows_parent_pointers(draws):
    parents = [-1] + [draw % (i + 1) for i, draw in enumerate(draws)]
    matrix = ancestor_matrix(torch.tensor([parents]))[0]
    for node in range(len(parents)):
        expected, at = set(), node
        while at >= 0:
            expected.add(at)
            at = parents[at]
        assert set(matrix[node].nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize("size", [1, 63, 64, 65, 128, 200])
def test_unpack_bits_inverts_pack_bits(size):
    members = torch.rand(2, 3, size) < 0.5
    members[..., -1] = True
    words = pack_bits(members)
    assert words.shape == (2, 3, -(-size // 64))
    assert torch.equal(unpack_bits(words, size), members)


def test_bit_63_is_stored_as_the_sign_bit():
    only = torch.zeros(1, 64, dtype=torch.bool)
    only[0, 63] = True
    assert pack_bits(only).item() == -(2**63)
    assert torch.equal(unpack_bits(pack_bits(only), 64), only)
