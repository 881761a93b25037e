"""Weights that drafters start from."""

import pytest
import torch

from specdec.drafters.eagle3 import Eagle3Config, new_module
from specdec.model.target import Target
from specdec.train.begin import copy_last_layer
from specdec.train.eagle3 import run_passes
from tiny import VOCABULARY, tiny_model

LENGTH = 9


def eagle3_of(target, **sizes):
    config = Eagle3Config.beside(target.config, (1, 2), **sizes)
    torch.manual_seed(0)
    return new_module(config, VOCABULARY, None).to(target.dtype)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_eagle3_starts_as_the_last_layer_on_the_highest_states(family):
    target = Target(tiny_model(family))
    theta = target.config.rope_parameters["rope_theta"]
    model = eagle3_of(target, rope_theta=theta, rms_norm_eps=target.config.rms_norm_eps)
    copy_last_layer(target, model)
    width = model.config.hidden_size
    states = torch.randn(1, LENGTH, 2 * width, dtype=torch.float64)
    with torch.no_grad():
        for projection in (model.q_proj, model.k_proj, model.v_proj):
            projection.weight[:, :width] = 0  # the target's layer reads no embedding
        ids = torch.zeros(1, LENGTH, dtype=torch.int64)
        (ours,) = run_passes(target, model, states, ids, 1)
        place = torch.arange(LENGTH)[None]
        hidden = states[..., width:]
        rotary = target.parts.rotary(hidden, place)
        ahead = torch.full((LENGTH, LENGTH), -torch.inf, dtype=torch.float64).triu(1)
        theirs = target.parts.layers[-1](
            hidden, attention_mask=ahead[None, None], position_embeddings=rotary
        )
    # Our softmax and angles are computed in float32.
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2"])
def test_eagle3_starts_at_random_beside_other_layers(family):
    target = Target(tiny_model(family))
    model, untouched = eagle3_of(target), eagle3_of(target)
    copy_last_layer(target, model)
    for (name, ours), expected in zip(
        model.named_parameters(), untouched.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, msg=name)


def test_eagle3_starts_at_random_with_an_mlp_of_another_width():
    target = Target(tiny_model("llama"))
    model, untouched = (eagle3_of(target, intermediate_size=40) for _ in range(2))
    copy_last_layer(target, model)
    torch.testing.assert_close(model.q_proj.weight, untouched.q_proj.weight, rtol=0, atol=0)
