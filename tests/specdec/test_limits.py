"""Limits that the command line must know before torch is loaded."""

import pytest
import torch

from specdec import limits
from specdec_kernels import checks, gumbel_noise


def test_max_nodes_equals_the_kernels_limit():
    assert limits.MAX_NODES == checks.MAX_NODES


def test_max_seed_equals_the_noise_limit():
    ids = torch.zeros(1, dtype=torch.int64)
    gumbel_noise(limits.MAX_SEED, ids, ids, ids)
    with pytest.raises(ValueError, match="seed: expected 0 to"):
        gumbel_noise(limits.MAX_SEED + 1, ids, ids, ids)
