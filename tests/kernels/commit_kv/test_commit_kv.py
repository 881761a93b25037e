import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec_kernels import commit_kv


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(0, 10**6))
def test_commit_equals_copying_each_row(batch, nodes, seed):
    generator = torch.Generator().manual_seed(seed)
    layers, rows, heads, size, longest = 3, 5, 2, 4, 9
    kv = torch.randn(layers, 2, rows, heads, longest + nodes, size, generator=generator)
    before = kv.clone()
    prefix = torch.randint(0, longest + 1, (batch,), generator=generator)
    cache_rows = torch.randperm(rows, generator=generator)[:batch]
    lengths = torch.randint(0, nodes, (batch,), generator=generator)
    path = torch.full((batch, nodes), -1)
    for row, length in enumerate(lengths.tolist()):
        inner = torch.randperm(nodes - 1, generator=generator)[:length].sort().values + 1
        path[row, : length + 1] = torch.cat([torch.zeros(1, dtype=torch.int64), inner])

    commit_kv(kv, path, lengths, prefix_lens=prefix, cache_rows=cache_rows)
    expected = before.clone()
    for row in range(batch):
        start, at = int(prefix[row]), int(cache_rows[row])
        for step, node in enumerate(path[row, : lengths[row] + 1].tolist()):
            expected[:, :, at, :, start + step] = before[:, :, at, :, start + node]
    assert torch.equal(kv, expected)


def test_error_names_the_bad_argument():
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="kv: expected shape"):
        commit_kv(torch.zeros(2, 3), one[None], one, prefix_lens=one)
    with pytest.raises(ValueError, match="prefix_lens: expected shape \\[1\\], got \\[2\\]"):
        commit_kv(torch.zeros(1, 2, 1, 1, 4, 2), one[None], one, prefix_lens=one.expand(2))
