"""The draft step as an op: registration, compilation, gradients, errors, and the module on top."""

import pytest
import torch

from draft_step_problems import make_inputs, map_tensors, sliced
from ladder import check_compiles_whole, check_never_silent, check_op, every_way
from specdec_kernels import RecurrentDraftStep
from specdec_kernels._ops import ops
from specdec_kernels.draft_step import draft_step


def flat(inputs, embed_scale=None):
    """The op's own arguments."""
    *inputs, weights = inputs
    return *inputs, *weights[:4], list(weights.blocks), list(weights.biases), embed_scale


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
