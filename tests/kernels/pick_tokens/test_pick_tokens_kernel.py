"""The picking kernels against the reference, which other tests hold against transformers and against frequencies."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from pick_problems import ROUNDING, assert_same_picks, make_logits, mass_up_to
from specdec_kernels import pick_tokens
from specdec_kernels.device.noise import gumbel as device_gumbel
from specdec_kernels.device.noise import noise_bits
from specdec_kernels.pick_tokens.bound import launch_bounds
from specdec_kernels.pick_tokens.noise import gumbel, philox
from specdec_kernels.pick_tokens.reference import processed_scores
from specdec_kernels.testing.poison import poisoned_empty

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@triton.jit(do_not_specialize=["seed"])
def _write_bits(stream_ptr, position_ptr, bits_ptr, seed, first, BLOCK: tl.constexpr):
    bits = noise_bits(seed, tl.load(stream_ptr), tl.load(position_ptr), first, BLOCK)
    tl.store(bits_ptr + tl.arange(0, BLOCK), bits.to(tl.int64))


@triton.jit
def _write_noise(bits_ptr, noise_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(noise_ptr + at, device_gumbel(tl.load(bits_ptr + at).to(tl.uint32)))


@pytest.mark.parametrize("first", [0, 512, 2**31 - 512])
@pytest.mark.parametrize("seed", [0, 1, 16, 2**31, 2**32 + 5, 2**63 - 1, 2**63, 2**64 - 1])
def test_philox_words_equal_the_reference(seed, first, kernel_device):
    blocks = (first + torch.arange(0, 512, 4)) // 4
    for stream, position in ((0, 0), (1, 2), (2**31, 2**32 - 1), (2**32 - 1, 12345)):
        key = [torch.tensor([x], device=kernel_device) for x in (stream, position)]
        bits = torch.empty(512, dtype=torch.int64, device=kernel_device)
        signed = seed - 2**64 if seed >= 2**63 else seed
        _write_bits[(1,)](*key, bits, signed, first, BLOCK=512)
        counters = (blocks, *map(torch.tensor, (position, stream, 0)))
        assert torch.equal(bits.cpu(), philox(seed, counters).T.flatten())


def test_noise_equals_the_reference_up_to_rounding(kernel_device):
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2**32, (4096,), generator=generator)
    bits[:40] = torch.arange(40)
    bits[40:80] = 2**32 - 1 - torch.arange(40)
    bits[80:112] = 2 ** torch.arange(32)
    noise = torch.empty(4096, device=kernel_device)
    _write_noise[(1,)](bits.to(kernel_device), noise, BLOCK=4096)
    expected = gumbel(bits)
    exact = -torch.log(-torch.log1p(-((bits.double() + 0.5) / 2**32).clamp(max=1 - 2**-24)))
    scale = expected.abs().clamp(min=1)
    # v itself is rounded to float32: near its highest values that is the larger error.
    assert ((noise.cpu() - expected).abs() <= 4 * torch.finfo(torch.float32).eps * scale).all()
    small = bits < 2**24  # exact in float32
    errors = [((x.double() - exact).abs() / scale)[small].amax() for x in (noise.cpu(), expected)]
    assert errors[0] <= 2 * errors[1] + torch.finfo(torch.float32).eps


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 5, 511, 512, 513, 2050])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_picks_equal_the_reference(dtype, size, temperature, kernel_device):
    inputs = make_logits(8, size, size, kernel_device, dtype)
    assert assert_same_picks(*inputs, temperature=temperature) <= 1
    forbidden = inputs[0].index_fill(1, torch.arange(0, size, 2, device=kernel_device), -torch.inf)
    assert assert_same_picks(forbidden, *inputs[1:], temperature=temperature) <= 1


FILTERS = [
    (1.0, 5, None),
    (0.7, None, 0.9),
    (1.5, 50, 0.5),
    (1.0, 1, 0.999),
    (0.9, 10_000, 0.0),
]


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), FILTERS)
def test_filtered_picks_equal_the_reference(dtype, temperature, top_k, top_p, kernel_device):
    inputs = make_logits(6, 700, 3, kernel_device, dtype)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    assert assert_same_picks(*inputs, **options) <= 1


def kept_by_kernel(logits, temperature, top_k, top_p):
    """Which tokens are not below the bound that the kernel finds, `[R, V]` bool."""
    with poisoned_empty():
        bounds = launch_bounds(logits, temperature, top_k, top_p).cpu()
    upper = (bounds >> 32).int()
    border = (upper ^ ((upper >> 31) & 0x7FFFFFFF)).view(torch.float32)[:, None]
    least_id = (bounds & 0xFFFFFFFF)[:, None]
    scores = processed_scores(logits, temperature, None, None).cpu()
    ids = torch.arange(logits.shape[1])
    return (scores > border) | ((scores == border) & (ids >= least_id))


def assert_same_kept(logits, temperature, top_k, top_p):
    kept = kept_by_kernel(logits, temperature, top_k, top_p)
    expected = processed_scores(logits, temperature, top_k, top_p).cpu() > -torch.inf
    differ = kept != expected
    if top_p is not None and differ.any():
        scores = processed_scores(logits, temperature, top_k, None).cpu()
        off = (mass_up_to(scores) - (1 - top_p)).abs()
        assert (off[differ] <= ROUNDING).all()
        assert differ.sum(-1).amax() <= 1
    else:
        assert not differ.any()


@settings(deadline=None, max_examples=30)
@given(
    st.integers(2, 300), st.sampled_from([None, 1, 2, 9]), st.booleans(), st.floats(0, 0.99),
    st.booleans(), st.integers(0, 10**6),
)  # fmt: skip
def test_filters_keep_the_same_tokens_as_the_reference(
    kernel_device, size, distinct, has_k, top_p, has_p, seed
):
    logits = make_logits(2, size, seed, kernel_device, distinct=distinct)[0]
    logits[:, seed % size] = -0.0
    top_k = 1 + seed % (size - 1) if has_k else None
    if has_k or has_p:
        assert_same_kept(logits, 0.8, top_k, top_p if has_p else None)


def test_filters_of_rows_longer_than_a_tile_equal_the_reference(kernel_device):
    logits = make_logits(2, 9001, 5, kernel_device)[0]
    assert_same_kept(logits, 1.0, 700, 0.95)
    assert_same_kept(torch.zeros_like(logits), 1.0, None, 0.25)


def test_extreme_logits_equal_the_reference(kernel_device):
    size = 600
    nothing = torch.full((6, size), -torch.inf, device=kernel_device)
    logits = nothing.clone()
    logits[1, 590] = -3.0
    logits[2, [17, 300]] = torch.inf
    logits[3] = torch.arange(size)
    logits[3, [20, 555]] = torch.nan
    logits[4] = torch.finfo(torch.float32).max
    logits[5] = torch.finfo(torch.float32).min
    key = torch.arange(6, device=kernel_device)
    for top_k, top_p in ((None, None), (3, None), (None, 0.4), (30, 0.9)):
        options = {"streams": key, "positions": key, "top_k": top_k, "top_p": top_p}
        with poisoned_empty():
            found = pick_tokens(logits, seed=4, **options, impl="triton").tolist()
        assert found[:4] == [0, 590, 17, 20]
        assert found == pick_tokens(logits, seed=4, **options, impl="reference").tolist()


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 4), st.integers(1, 1500), st.integers(0, 2**64 - 1), st.floats(0.1, 3),
    st.sampled_from([None, 3]),
)  # fmt: skip
def test_picks_equal_the_reference_for_any_shape_and_seed(
    kernel_device, rows, size, seed, temperature, distinct
):
    inputs = make_logits(rows, size, size, kernel_device, distinct=distinct)
    assert_same_picks(*inputs, seed=seed, temperature=temperature)


def test_rows_may_be_strided_expanded_or_empty(kernel_device):
    logits, streams, positions = make_logits(8, 600, 6, kernel_device)
    assert_same_picks(logits[::2, 3:590], streams[::2], positions[1::2], top_k=30)
    assert_same_picks(logits[:1].expand(8, -1), streams, positions, top_p=0.7)
    none = pick_tokens(
        logits[:0], seed=0, streams=streams[:0], positions=positions[:0], impl="triton"
    )
    assert none.shape == (0,)
