"""The kernels of a draft step against their reference, and the reference against beams one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from ladder import check_compiles_whole, check_never_silent, check_op, every_way
from specdec_kernels import RecurrentDraftStep
from specdec_kernels._ops import ops
from specdec_kernels.device.skinny_linear import choose_tiles
from specdec_kernels.draft_step import DraftStepWeights, draft_step
from specdec_kernels.testing.accuracy import assert_no_worse
from specdec_kernels.testing.poison import poisoned_empty

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
VOCABULARY = 11


def make_inputs(
    batch, width, size, *, dtype, device, exit_dim=None, blocks=2, rnn=True, seed=0, parents_width=3
):
    """Arguments of `draft_step`, all but its options."""
    generator = torch.Generator().manual_seed(seed)
    module = RecurrentDraftStep(size, exit_dim=exit_dim, residual_blocks=blocks, rnn=rnn)
    for parameter in module.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    module = module.to(device, dtype).requires_grad_(False)
    numbers = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in ((batch, parents_width, size), (batch, size), (VOCABULARY, size))
    )
    states, context, embedding = numbers
    tokens = torch.randint(0, VOCABULARY, (batch, width), generator=generator).to(device)
    parents = torch.randint(0, parents_width, (batch, width), generator=generator).to(device)
    part = module.context_part(context)
    return tokens, parents, states, context, part, embedding, module.step_weights()


def map_tensors(change, inputs):
    """Apply a function to every floating-point tensor of the arguments."""
    if isinstance(inputs, DraftStepWeights):
        return DraftStepWeights(*map_tensors(change, tuple(inputs)))
    if isinstance(inputs, tuple | list):
        return type(inputs)(map_tensors(change, x) for x in inputs)
    return change(inputs) if inputs is not None and inputs.is_floating_point() else inputs


def flat(inputs, embed_scale=None):
    """The op's own arguments."""
    *inputs, weights = inputs
    return *inputs, *weights[:4], list(weights.blocks), list(weights.biases), embed_scale


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


def sliced(x):
    """The same numbers with gaps between rows."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 3), torch.nan, dtype=x.dtype, device=x.device)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


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


def test_module_draft_equals_its_training_forward(kernel_device):
    module = RecurrentDraftStep(24, residual_blocks=2).to(kernel_device).requires_grad_(False)
    tokens, parents, states, context, _, embedding, _ = make_inputs(
        2, 3, 24, dtype=torch.float32, device=kernel_device
    )
    part = module.context_part(context)
    embedded = 2 * embedding[tokens]
    picked = states.gather(1, parents[..., None].expand(-1, -1, 24))
    expected = module(embedded, picked, context[:, None], part[:, None])
    for impl in ("auto", "reference", "triton"):
        found = module.draft(
            tokens, parents, states, context, part, embedding, embed_scale=2.0, impl=impl
        )
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y)


def test_reference_has_gradients_for_every_weight_and_the_kernel_rejects_them():
    inputs = make_inputs(2, 3, 8, dtype=torch.float32, device="cpu")
    weights = map_tensors(lambda x: x.clone().requires_grad_(), inputs[6])
    states, features = draft_step(*inputs[:6], weights)  # on a CPU, "auto" is the reference
    (states.sum() + features.sum()).backward()
    for x in (*weights[:4], *weights.blocks, *weights.biases):
        assert x.grad.any()
    with pytest.raises(ValueError, match="gradients are recorded"):
        draft_step(*inputs[:6], weights, impl="triton")


@pytest.mark.parametrize(("exit_dim", "blocks", "rnn"), [(None, 2, True), (10, 1, False)])
def test_op_passes_opcheck(exit_dim, blocks, rnn, kernel_device):
    shape = {"exit_dim": exit_dim, "blocks": blocks, "rnn": rnn}
    inputs = make_inputs(2, 3, 8, dtype=torch.float32, device=kernel_device, **shape)
    check_op(ops.draft_step, *flat(inputs, 1.5))
    tokens, parents, *numbers = inputs
    apart = [x.T.contiguous().T for x in (tokens, parents)]
    check_op(ops.draft_step, *flat((*apart, *map_tensors(sliced, tuple(numbers)))))


@every_way
def test_compiles_with_fullgraph(impl, dynamic, kernel_device):
    check_compiles_whole(
        lambda *inputs: draft_step(*inputs, embed_scale=1.5, impl=impl),
        make_inputs(2, 3, 8, dtype=torch.float32, device=kernel_device),
        make_inputs(3, 5, 8, dtype=torch.float32, device=kernel_device, parents_width=4),
        dynamic=dynamic,
    )


def test_error_names_the_bad_argument(kernel_device):
    inputs = make_inputs(2, 3, 8, dtype=torch.float32, device=kernel_device)
    tokens, parents, states, context, part, embedding, weights = inputs
    names = ("tokens", "parents", "states", "context", "context_part", "embedding", "weights")

    def step(impl="triton", weights=weights, **changed):
        given = {**dict(zip(names, inputs, strict=True)), "weights": weights, **changed}
        draft_step(*given.values(), impl=impl)

    check_never_silent(lambda impl: step(impl=impl))
    for changed, message in (
        ({"tokens": tokens[0]}, r"tokens: expected shape \[B >= 1, W >= 1\], got \[3\]"),
        ({"states": states[:1]}, r"states: expected shape \[2, Wp >= 1, E\], got \[1, 3, 8\]"),
        ({"states": states.sum()}, r"states: expected shape \[2, Wp >= 1, E\], got \[\]"),
        (
            {"context_part": part[:, :0]},
            r"context_part: expected shape \[2, X >= 1\], got \[2, 0\]",
        ),
        ({"context_part": part[0]}, r"context_part: expected shape \[2, X >= 1\], got \[16\]"),
        ({"context": context[:, :7]}, r"context: expected shape \[2, 8\], got \[2, 7\]"),
        ({"embedding": embedding[0]}, r"embedding: expected shape \[V >= 1, 8\], got \[8\]"),
        ({"context_part": None}, "context_part, state_in: expected both or none, got state_in"),
        ({"embedding": embedding.T.contiguous().T}, "embedding: expected a contiguous last dim"),
        ({"embedding": embedding.to("meta")}, "device: expected all tensors on one device, got"),
        (
            {"weights": weights._replace(recurrent_bias=None)},
            "recurrent_input, recurrent_state, recurrent_bias: expected all three or none",
        ),
        (
            {"weights": weights._replace(blocks=[part])},
            r"blocks\[0\]: expected shape \[16, 16\], got \[2, 16\]",
        ),
        ({"weights": weights._replace(blocks=[])}, "biases: expected 0 as in blocks, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            step(**changed)
    for changed, message in (
        ({"parents": parents.int()}, "parents: expected int64, got torch.int32"),
        (
            {"embedding": embedding.half()},
            "embedding: expected torch.float32 as states, got torch.float16",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            step(**changed)
    with pytest.raises(
        TypeError, match="states: expected float32, float16 or bfloat16 in a kernel"
    ):
        draft_step(*map_tensors(torch.Tensor.double, inputs), impl="triton")


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
def test_module_validates_arguments_like_the_op(impl, kernel_device):
    module = RecurrentDraftStep(8).to(kernel_device).requires_grad_(False)
    inputs = make_inputs(2, 3, 8, dtype=torch.float32, device=kernel_device)
    names = ("tokens", "parents", "states", "context", "context_part", "embedding")
    given = dict(zip(names, inputs[:6], strict=True))
    for changed, message in (
        ({"parents": given["parents"][:, :1]}, r"parents: expected shape \[2, 3\], got \[2, 1\]"),
        ({"context": given["context"][:1]}, r"context: expected shape \[2, 8\], got \[1, 8\]"),
        ({"context_part": None}, "context_part, state_in: expected both or none, got state_in"),
        ({"embedding": given["embedding"].to("meta")}, "device: expected all tensors on one"),
    ):
        with pytest.raises(ValueError, match=message):
            module.draft(**{**given, **changed}, impl=impl)
    check_never_silent(lambda impl: module.draft(**given, impl=impl))
