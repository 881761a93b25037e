"""Inputs of a draft step."""

import torch

from specdec_kernels import RecurrentDraftStep
from specdec_kernels.draft_step import DraftStepWeights

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


def sliced(x):
    """The same numbers with gaps between rows."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 3), torch.nan, dtype=x.dtype, device=x.device)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]
