"""Invalid settings and adapters of Kangaroo are rejected by name."""

import math

import pytest
import torch

from specdec.drafters.kangaroo import KangarooConfig, KangarooDrafter
from specdec.model.target import Target
from tiny import tiny_model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size: expected at least 1, got 0"),
        ({"heads": 0}, "heads: expected at least 1, got 0"),
        ({"kv_heads": 3}, "kv_heads: expected a divisor of 4 heads, got 3"),
        ({"head_dim": 7}, "head_dim: expected an even number from 2 on, got 7"),
        ({"exit_layer": 0}, "exit_layer: expected at least 1, got 0"),
        ({"gamma": 0}, "gamma: expected at least 1, got 0"),
        ({"eta": -0.1}, "eta: expected at least 0, got -0.1"),
        ({"eta": math.nan}, "eta: expected at least 0, got nan"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps: expected above 0, got 0.0"),
        ({"rope_theta": -1.0}, "rope_theta: expected above 0, got -1.0"),
    ],
)
def test_error_names_the_invalid_setting(options, message):
    good = {"hidden_size": 48, "heads": 4, "kv_heads": 2, "head_dim": 6, "exit_layer": 1}
    with pytest.raises(ValueError, match=message):
        KangarooConfig(**good | options)


def test_adapter_that_does_not_fit_the_target_is_rejected():
    target = Target(tiny_model("llama"))
    config = KangarooConfig(48, 4, 2, 6, exit_layer=2)
    with pytest.raises(ValueError, match="hidden_size: expected the target's 48, got 24"):
        other = KangarooConfig(24, 4, 2, 6, exit_layer=2)
        KangarooDrafter(target, other, other.new_adapter())
    with pytest.raises(
        ValueError, match="exit_layer: expected 1 to 2 of the target's 3 layers, got 3"
    ):
        other = KangarooConfig(48, 4, 2, 6, exit_layer=3)
        KangarooDrafter(target, other, other.new_adapter())
    with pytest.raises(
        ValueError, match="adapter: expected kv_heads 2 as in its configuration, got 4"
    ):
        KangarooDrafter(target, config, KangarooConfig(48, 4, 4, 6, exit_layer=2).new_adapter())
    for ids in (torch.tensor([3, 2]), torch.tensor([], dtype=torch.int64)):
        with pytest.raises(ValueError, match="draft_vocabulary: expected ascending ids"):
            KangarooDrafter(target, config, config.new_adapter(), ids)
    with pytest.raises(ValueError, match="draft_vocabulary: expected ids from 0 to 60"):
        KangarooDrafter(target, config, config.new_adapter(), torch.tensor([1, 61]))
