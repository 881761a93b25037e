"""The coupling kernel against the reference: equal random bits, and no larger error."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_problems import exactly, make_candidates
from specdec_kernels import coupled_log_probs
from specdec_kernels.device.noise import token_bits
from specdec_kernels.pick_tokens.noise import philox
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import poisoned_empty

ENDS = torch.tensor(
    [0, 1, 2, 3, 4, 5, 2**31 - 1, 2**31, 2**31 + 2, 2**32 - 4, 2**32 - 2, 2**32 - 1]
)


@triton.jit(do_not_specialize=["seed"])
def _write_bits(ids_ptr, stream_ptr, position_ptr, bits_ptr, seed, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    key = (tl.load(stream_ptr), tl.load(position_ptr))
    bits = token_bits(seed, key[0], key[1], tl.load(ids_ptr + at))
    tl.store(bits_ptr + at, bits.to(tl.int64))


def run(candidates, impl, **options):
    log_probs, ids, streams, positions = candidates
    options = {"seed": 5, "temperature": 0.8, "sharpness": 1.5} | options
    with poisoned_empty():
        return coupled_log_probs(
            log_probs, ids, streams=streams, positions=positions, impl=impl, **options
        )


def assert_as_good(candidates, seed=5, temperature=0.8, sharpness=1.5):
    options = {"seed": seed, "temperature": temperature, "sharpness": sharpness}
    found, expected = (run(candidates, impl, **options).cpu() for impl in ("triton", "reference"))
    assert_no_worse(found, expected, exactly(*candidates, **options))


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**63, 2**64 - 1])
@pytest.mark.parametrize(("stream", "position"), [(0, 0), (2**31, 2**32 - 1), (2**32 - 1, 12345)])
def test_philox_words_equal_the_reference(seed, stream, position, kernel_device):
    key = [torch.tensor([x], device=kernel_device) for x in (stream, position)]
    ids = torch.cat([ENDS, ENDS[:4]])
    bits = torch.empty(16, dtype=torch.int64, device=kernel_device)
    signed = seed - 2**64 if seed >= 2**63 else seed
    _write_bits[(1,)](ids.to(kernel_device), *key, bits, signed, BLOCK=16)
    words = philox(seed, (ids >> 2, *map(torch.tensor, (position, stream, 0))))
    assert torch.equal(bits.cpu(), words.gather(0, ids[None] & 3)[0])


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (2, 3, 2), (4, 3, 32), (3, 1, 33), (1, 5, 127), (1, 2, 1000), (1, 1, 1024)],
    ids=str,
)
def test_kernel_is_no_less_accurate_than_the_reference(shape, kernel_device):
    assert_as_good(make_candidates(*shape, shape[2], kernel_device))


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**64 - 1),
    st.floats(0.1, 3), st.floats(0.1, 3),
)  # fmt: skip
def test_kernel_is_no_less_accurate_than_the_reference_for_any_shape_and_seed(
    kernel_device, batch, beams, count, seed, temperature, sharpness
):
    candidates = make_candidates(batch, beams, count, seed % 1000, kernel_device)
    assert_as_good(candidates, seed, temperature, sharpness)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of inf - inf
@pytest.mark.parametrize("temperature", [0.8, 1e-38])
def test_extreme_log_probs_equal_the_reference(temperature, kernel_device):
    inf, nan, most = torch.inf, torch.nan, torch.finfo(torch.float32).max
    values = [
        [-inf, -1.0, -inf, -2.0, -0.0],
        [-inf] * 5,
        [-1.0, nan, -inf, -2.0, 0.0],
        [nan] * 5,
        [inf, -1.0, -inf, inf, 0.0],
        [-most, -most, -1.0, -inf, -0.5],
        [-most] * 5,
        [-1.0] * 5,
    ]
    _, _, *key = make_candidates(1, 1, 1, 3, kernel_device)
    log_probs = torch.tensor(values, device=kernel_device)[None]
    ids = torch.arange(40, device=kernel_device).view(1, 8, 5)
    candidates = (log_probs, ids, *key)
    found, expected = (
        run(candidates, impl, temperature=temperature) for impl in ("triton", "reference")
    )
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert (found[log_probs == -inf] == -inf).all()
    assert not found[0, [0, 1, 5, 6, 7]].isnan().any()


def test_inputs_may_be_strided_expanded_or_empty(kernel_device):
    log_probs, ids, streams, positions = make_candidates(4, 3, 20, 1, kernel_device)
    assert_as_good((log_probs[::2, 1:, 3:], ids[::2, 1:, 3:], streams[::2], positions[1::2]))
    assert_as_good((log_probs.mT, ids.mT, streams, positions))
    one = log_probs[:1, :1].expand(4, 3, -1)
    assert_as_good((one, ids[:1].expand(4, -1, -1), streams, positions[:1].expand(4)))
    none = run((log_probs[:0], ids[:0], streams[:0], positions[:0]), "triton")
    assert none.shape == (0, 3, 20)


def test_result_of_a_beam_does_not_depend_on_other_beams(kernel_device):
    candidates = make_candidates(3, 4, 33, 2, kernel_device)
    whole = run(candidates, "triton")
    log_probs, ids, streams, positions = (x[1:2] for x in candidates)
    alone = run((log_probs[:, 2:3], ids[:, 2:3], streams, positions), "triton")
    assert torch.equal(alone, whole[1:2, 2:3])
