import pytest
import torch
from torch.nn.functional import linear, silu

from counted_operators import Counted
from specdec_kernels import RecurrentDraftStep

E = 12


def by_the_paper(module, embedded, state, context):
    """ReDrafter section 3.1 with whole weights: nothing split, nothing computed ahead."""
    w = module.state_dict()
    if "recurrent_input.weight" in w:
        cell = linear(embedded, w["recurrent_input.weight"])
        cell = cell + linear(state, w["recurrent_state.weight"], w["recurrent_state.bias"])
        state = silu(cell)
    else:
        state = embedded + state
    x = torch.cat([context.expand_as(state), state], -1)
    layers = []
    if "context_in.weight" in w:
        whole = torch.cat([w["context_in.weight"], w["state_in.weight"]], 1)
        layers.append((whole, w["context_in.bias"]))
    layers += [(block.weight, block.bias) for block in module.blocks]
    if module.projected:
        weight, bias = layers.pop(0)
        x = linear(x, weight, bias)
    for weight, bias in layers:
        x = x + silu(linear(x, weight, bias))
    return state, x


@pytest.mark.parametrize("rnn", [True, False])
@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("exit_dim", [None, 2 * E, 10])
@pytest.mark.parametrize("rows", [(1,), (2, 5)])
def test_step_equals_the_papers_formula(rnn, blocks, exit_dim, rows):
    torch.manual_seed(blocks)
    module = RecurrentDraftStep(E, exit_dim=exit_dim, residual_blocks=blocks, rnn=rnn).double()
    embedded, state = torch.randn(2, *rows, E, dtype=torch.float64)
    context = torch.randn(*rows[:-1], 1, E, dtype=torch.float64)
    part = module.context_part(context)
    new_state, features = module(embedded, state, context, part)
    their_state, their_features = by_the_paper(module, embedded, state, context)
    torch.testing.assert_close(new_state, their_state)
    torch.testing.assert_close(features, their_features)
    assert features.shape[-1] == module.exit_dim == (exit_dim or 2 * E)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size: expected at least 1, got 0"),
        ({"exit_dim": 0}, "exit_dim: expected at least 1, got 0"),
        ({"residual_blocks": -1}, "residual_blocks: expected at least 0, got -1"),
    ],
)
def test_out_of_range_sizes_are_rejected(sizes, message):
    with pytest.raises(ValueError, match=message):
        RecurrentDraftStep(**{"hidden_size": 4, **sizes})


@torch.inference_mode()
def test_operators_per_step_do_not_exceed_the_recorded_maximum():
    module = RecurrentDraftStep(E)
    tokens = torch.tensor([[3, 1, 2]])
    states, context, embedding = torch.randn(1, 4, E), torch.randn(1, E), torch.randn(9, E)
    part = module.context_part(context)
    with Counted() as counted:
        module.draft(tokens, tokens, states, context, part, embedding)
    assert counted.count <= 21
