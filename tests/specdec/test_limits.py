"""Limits that the command line must know before torch is loaded."""

import pytest
import torch

from specdec import limits
from specdec_kernels import checks, gumbel_noise


def test_a_tree_may_have_as_many_nodes_as_kernels_take():
    assert limits.MAX_NODES == checks.MAX_NODES


def test_the_largest_seed_is_the_largest_that_noise_takes():
    ids = torch.zeros(1, dtype=torch.int64)
    gumbel_noise(limits.MAX_SEED, ids, ids, ids)
    with pytest.raises(ValueError, match="seed: expected 0 to"):
        gumbel_noise(limits.MAX_SEED + 1, ids, ids, ids)
