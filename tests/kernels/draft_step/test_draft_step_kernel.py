"""The kernels of a draft step against their reference, and the reference against beams one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from draft_step_problems import DTYPES, VOCABULARY, make_inputs, map_tensors, sliced
from specdec_kernels.device.skinny_linear import choose_tiles
from specdec_kernels.draft_step import draft_step
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import poisoned_empty


def assert_kernel_is_no_worse(inputs, **options):
    exact = draft_step(*map_tensors(torch.Tensor.double, inputs), impl="reference", **options)
    reference = draft_step(*inputs, impl="reference", **options)
    with poisoned_empty():
        found = draft_step(*inputs, impl="triton", **options)
    for x, y, z in zip(found, reference, exact, strict=True):
        assert_no_worse(x, y, z)


def test_reference_equals_a_loop_over_beams():
    for exit_dim, blocks in ((None, 2), (7, 1), (None, 0)):
        inputs = make_inputs(
            2, 4, 5, dtype=torch.float64, device="cpu", exit_dim=exit_dim, blocks=blocks
        )
        tokens, parents, states, context, part, embedding, weights = inputs
        new, features = draft_step(*inputs, embed_scale=1.5, impl="reference")
        for b in range(2):
            for w in range(4):
                e, s = 1.5 * embedding[tokens[b, w]], states[b, parents[b, w]]
                cell = weights.recurrent_input @ e + weights.recurrent_state @ s
                s = silu(cell + weights.recurrent_bias)
                torch.testing.assert_close(new[b, w], s)
                x = torch.cat([context[b], s])
                if part is not None:
                    first = part[b] + weights.state_in @ s
                    x = first if exit_dim else x + silu(first)
                for weight, bias in zip(weights.blocks, weights.biases, strict=True):
                    x = x + silu(weight @ x + bias)
                torch.testing.assert_close(features[b, w], x)


SHAPES = {
    "B1-W1-E1": (1, 1, 1),
    "B1-W8-E64": (1, 8, 64),
    "B3-W5-E63": (3, 5, 63),
    "B2-W33-E65": (2, 33, 65),
    "B1-W2-E192": (1, 2, 192),
}


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_kernel_is_no_less_accurate_than_the_reference(shape, dtype, kernel_device):
    assert_kernel_is_no_worse(make_inputs(*shape, dtype=dtype, device=kernel_device))


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rnn", [True, False])
@pytest.mark.parametrize(("exit_dim", "blocks"), [(None, 0), (None, 1), (40, 0), (40, 2)])
def test_kernel_supports_every_architecture_option(exit_dim, blocks, rnn, dtype, kernel_device):
    shape = {"exit_dim": exit_dim, "blocks": blocks, "rnn": rnn}
    inputs = make_inputs(2, 3, 24, dtype=dtype, device=kernel_device, **shape)
    assert_kernel_is_no_worse(inputs, embed_scale=1.37)


# Of a handful of numbers the reference may happen to be right to the last bit: not fewer than these.
@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(4, 20),
    st.integers(16, 70),
    st.sampled_from([None, 17, 96]),
    st.integers(0, 2),
    st.sampled_from(DTYPES),
    st.integers(0, 10**6),
)
def test_kernel_is_no_less_accurate_on_any_shape(
    kernel_device, batch, width, size, exit_dim, blocks, dtype, seed
):
    inputs = make_inputs(
        batch, width, size, dtype=dtype, device=kernel_device,
        exit_dim=exit_dim, blocks=blocks, seed=seed, parents_width=1 + seed % 4,
    )  # fmt: skip
    assert_kernel_is_no_worse(inputs)


@pytest.mark.parametrize("depth", [64, 128, 256])
def test_kernel_is_no_less_accurate_with_unmasked_tiles(depth, kernel_device):
    # 16 features for each of 6 processors and more: the largest weight tiles, whose loops have no masks.
    inputs = make_inputs(1, 4, depth, dtype=torch.float16, device=kernel_device, exit_dim=384)
    assert_kernel_is_no_worse(inputs)


def test_weight_tile_size_is_reduced_until_tiles_occupy_the_gpu():
    from specdec_kernels.gpu import KNOWN

    half = torch.float16
    sizes = {
        features: choose_tiles(8, features, 4096, half, KNOWN["sm_90"]).features
        for features in (576, 4096, 8192)
    }
    assert sizes == {576: 16, 4096: 32, 8192: 64}
    # Rows in several blocks fill it as well.
    assert choose_tiles(256, 2048, 4096, half, KNOWN["sm_90"]).features == 64


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_unreferenced_states_and_embeddings_are_never_read(impl, kernel_device):
    inputs = make_inputs(2, 5, 20, dtype=torch.float32, device=kernel_device, parents_width=4)
    tokens, parents, states, context, part, embedding, weights = inputs
    expected = draft_step(*inputs, impl=impl)
    states, embedding = states.clone(), embedding.clone()
    for b in range(2):
        states[b, [i for i in range(4) if i not in parents[b].tolist()]] = torch.nan
    embedding[[i for i in range(VOCABULARY) if i not in tokens.flatten().tolist()]] = torch.nan
    found = draft_step(tokens, parents, states, context, part, embedding, weights, impl=impl)
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_out_of_range_ids_are_clamped(impl, kernel_device):
    tokens, parents, *others = make_inputs(1, 4, 9, dtype=torch.float32, device=kernel_device)
    tokens[:] = torch.tensor([-1, 0, 1 << 60, VOCABULARY - 1])
    parents[:] = torch.tensor([-5, 0, 2, 1 << 60])
    states, features = draft_step(tokens, parents, *others, impl=impl)
    tokens[:] = torch.tensor([0, 0, VOCABULARY - 1, VOCABULARY - 1])
    parents[:] = torch.tensor([0, 0, 2, 2])
    inside = draft_step(tokens, parents, *others, impl=impl)
    assert torch.equal(states, inside[0]) and torch.equal(features, inside[1])


def test_result_of_a_row_is_bit_identical_in_any_batch(kernel_device):
    inputs = make_inputs(3, 5, 40, dtype=torch.bfloat16, device=kernel_device)
    tokens, parents, states, context, part, embedding, weights = inputs
    whole = draft_step(*inputs, impl="triton")
    again = draft_step(*inputs, impl="triton")
    one = slice(1, 2)
    alone = draft_step(
        tokens[one], parents[one], states[one], context[one], part[one], embedding, weights,
        impl="triton",
    )  # fmt: skip
    for x, y, z in zip(whole, again, alone, strict=True):
        assert torch.equal(x, y) and torch.equal(x[one], z)


def test_inputs_may_be_strided(kernel_device):
    inputs = make_inputs(2, 5, 20, dtype=torch.float32, device=kernel_device)
    tokens, parents, *numbers = inputs
    apart = [torch.stack([x, x], -1)[..., 0] for x in (tokens, parents)]
    for x, y in zip(
        draft_step(*apart, *map_tensors(sliced, tuple(numbers)), impl="triton"),
        draft_step(*inputs, impl="triton"),
        strict=True,
    ):
        assert torch.equal(x, y)
