"""The commit kernel against its reference: moves only, so every bit must agree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder import check_compiles_whole, check_never_silent, check_op, every_way
from specdec_kernels import commit_kv
from specdec_kernels._ops import ops


def make_inputs(batch, nodes, size, dtype, seed, device, layers=2, heads=3):
    generator = torch.Generator().manual_seed(seed)
    rows, longest = batch + 2, 9
    kv = torch.randn(layers, 2, rows, heads, longest + nodes, size, generator=generator).to(dtype)
    lengths = torch.randint(0, nodes, (batch,), generator=generator)
    path = torch.full((batch, nodes), -1)
    for row, length in enumerate(lengths.tolist()):
        inner = torch.randperm(nodes - 1, generator=generator)[:length].sort().values + 1
        path[row, : length + 1] = torch.cat([torch.zeros(1, dtype=torch.int64), inner])
    prefix_lens = torch.randint(0, longest + 1, (batch,), generator=generator)
    cache_rows = torch.randperm(rows, generator=generator)[:batch]
    return [x.to(device) for x in (kv, path, lengths, prefix_lens, cache_rows)]


def assert_same(kv, path, lengths, prefix_lens, cache_rows):
    # What no path reaches is NaN: it must neither be read into place nor written.
    kv[..., -1, :] = torch.nan
    found, expected = kv.clone(), kv.clone()
    for impl, out in (("triton", found), ("reference", expected)):
        commit_kv(out, path, lengths, prefix_lens=prefix_lens, cache_rows=cache_rows, impl=impl)
    assert torch.equal(found.nan_to_num(77), expected.nan_to_num(77))


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [64, 80, 96, 128, 256])
def test_kernel_equals_reference(size, dtype, kernel_device):
    assert_same(*make_inputs(2, 20, size, dtype, size, kernel_device, layers=1))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(2, 40), st.integers(0, 10**6))
def test_kernel_equals_reference_on_random_paths(kernel_device, batch, nodes, seed):
    assert_same(*make_inputs(batch, nodes, 4, torch.float32, seed, kernel_device, layers=1))


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("padding", [[0], [1, 3], [0, 1, 2, 3]], ids=str)
def test_padding_rows_leave_the_cache_unchanged(padding, impl, kernel_device):
    kv, path, lengths, prefix_lens, cache_rows = make_inputs(
        4, 12, 4, torch.float32, 8, kernel_device, layers=1
    )
    expected = kv.clone()
    others = [row for row in range(4) if row not in padding]
    options = {"prefix_lens": prefix_lens[others], "cache_rows": cache_rows[others]}
    if others:
        commit_kv(expected, path[others], lengths[others], **options, impl=impl)
        assert not torch.equal(kv, expected)
    path[padding], lengths[padding] = 1 << 40, 11
    prefix_lens[padding], cache_rows[padding] = 1 << 40, -1

    def commit(kv):
        out = kv.clone()
        options = {"prefix_lens": prefix_lens, "cache_rows": cache_rows}
        commit_kv(out, path, lengths, **options, impl=impl)
        return out

    assert torch.equal(commit(kv), expected)
    # A graph cannot look at lengths.
    assert torch.equal(torch.compile(commit, backend="eager", fullgraph=True)(kv), expected)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_negative_length_leaves_the_cache_unchanged(impl, kernel_device):
    kv, path, lengths, prefix_lens, cache_rows = make_inputs(
        3, 12, 4, torch.float32, 8, kernel_device
    )
    lengths[:] = torch.tensor([-1, 0, -1])
    out = kv.clone()
    commit_kv(out, path, lengths, prefix_lens=prefix_lens, cache_rows=cache_rows, impl=impl)
    assert torch.equal(out, kv)


def test_chain_of_256_nodes_is_moved_in_place(kernel_device):
    kv, path, lengths, prefix_lens, cache_rows = make_inputs(
        1, 257, 16, torch.float32, 0, kernel_device
    )
    path[0, 1:] = torch.arange(1, 257)
    path[0, 1:256] += 1  # every node but one moves to its neighbour's slot
    path[0, 256] = -1
    lengths[:] = 255
    assert_same(kv, path, lengths, prefix_lens, cache_rows)


def test_cache_may_be_strided(kernel_device):
    kv, *others = make_inputs(2, 12, 16, torch.float32, 3, kernel_device)
    wide = torch.zeros(*kv.shape[:3], 5, *kv.shape[4:], device=kv.device)
    for impl in ("triton", "reference"):
        wide[:, :, :, 1:4] = kv
        path, lengths, prefix_lens, cache_rows = others
        commit_kv(
            wide[:, :, :, 1:4],
            path,
            lengths,
            prefix_lens=prefix_lens,
            cache_rows=cache_rows,
            impl=impl,
        )
        assert not wide[:, :, :, 0].any() and not wide[:, :, :, 4].any()
        if impl == "triton":
            found = wide.clone()
    assert torch.equal(found, wide)


def test_op_passes_opcheck(kernel_device):
    kv, *others = make_inputs(2, 12, 16, torch.float32, 3, kernel_device)
    check_op(ops.commit_kv, kv, *others)
    check_op(ops.commit_kv, kv.transpose(3, 4).contiguous().transpose(3, 4), *others)


@every_way
def test_compiles_with_fullgraph(impl, dynamic, kernel_device):
    def commit(kv, path, lengths, prefix_lens, cache_rows):
        kv = kv.clone()
        commit_kv(kv, path, lengths, prefix_lens=prefix_lens, cache_rows=cache_rows, impl=impl)
        return kv

    check_compiles_whole(
        commit,
        make_inputs(2, 12, 16, torch.float32, 3, kernel_device),
        make_inputs(3, 14, 16, torch.float32, 3, kernel_device),
        dynamic=dynamic,
    )


def test_error_names_the_bad_argument(kernel_device):
    kv, path, lengths, prefix_lens, cache_rows = make_inputs(
        2, 12, 16, torch.float32, 3, kernel_device
    )

    def commit(kv=kv, path=path, lengths=lengths, cache_rows=cache_rows, impl="triton"):
        commit_kv(kv, path, lengths, prefix_lens=prefix_lens, cache_rows=cache_rows, impl=impl)

    check_never_silent(lambda impl: commit(impl=impl))
    with pytest.raises(ValueError, match="kv: expected a contiguous last dimension, got strides"):
        commit(kv=kv.transpose(4, 5).contiguous().transpose(4, 5))
    with pytest.raises(ValueError, match=r"lengths: expected shape \[2\], got \[3\]"):
        commit(lengths=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="path: expected int64, got torch.int32"):
        commit(path=path.int())
    with pytest.raises(
        ValueError, match="path: expected at most the cache's 21 slots, got 30 nodes"
    ):
        commit(path=torch.zeros(2, 30, dtype=torch.int64))
    with pytest.raises(ValueError, match="gradients are recorded"):
        commit(kv=kv.clone().requires_grad_())
