"""A tiny target, conversations with it, and the features of them."""

import pytest
import torch

from specdec.model.target import Target
from specdec.selftext.record import Conversation
from specdec.train.features import collect_features
from tiny import library_greedy, random_prompt, tiny_model
from training_tasks import EXIT


@pytest.fixture(scope="module")
def target():
    return Target(tiny_model("llama", 7, torch.float32))


@pytest.fixture(scope="module")
def conversations(target):
    prompts = [random_prompt(3 + seed % 5, seed) for seed in range(40)]
    return [Conversation(p, library_greedy(target.model, p, 12 + len(p))) for p in prompts]


@pytest.fixture(scope="module")
def features(target, conversations, tmp_path_factory):
    return collect_features(
        target, conversations, tmp_path_factory.mktemp("f"), exit_layers=[1, EXIT]
    )
