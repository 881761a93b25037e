"""On the device of `--device`, every drafter gives transformers' CPU tokens."""

import pytest
import torch

from every_drafter import DRAFTERS
from specdec.model.target import Target
from specdec.session import Session
from tiny import library_greedy, random_prompt, tiny_model

NEW = 12


@pytest.mark.parametrize("make", DRAFTERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("family", ["llama-16", "mistral-16", "qwen3-16"])
def test_tokens_on_the_device_equal_transformers_on_cpu(family, make, device):
    prompts = [random_prompt(5, 0), random_prompt(9, 1) * 2]
    on_cpu = tiny_model(family, dtype=torch.float32)
    expected = [library_greedy(on_cpu, prompt, NEW) for prompt in prompts]
    with torch.inference_mode(False):
        target = Target(tiny_model.__wrapped__(family, dtype=torch.float32).to(device))
        drafter = make(target)
    assert target.device.type == device.type
    assert (
        Session(target, drafter, max_nodes=16).generate(prompts, max_new_tokens=NEW).tokens
        == expected
    )
