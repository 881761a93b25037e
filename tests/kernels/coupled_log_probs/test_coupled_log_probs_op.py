"""Coupling as an op: registration, compilation, errors."""

import pytest
import torch

from coupled_problems import make_candidates
from ladder import check_compiles_whole, check_never_silent, check_op, every_way
from specdec_kernels import coupled_log_probs
from specdec_kernels._ops import ops


def test_op_passes_opcheck(kernel_device):
    log_probs, ids, *key = make_candidates(3, 2, 9, 1, kernel_device)
    check_op(ops.coupled_log_probs, log_probs, ids, 7, *key, 1.0, 1.5)
    rows = [x[::2] for x in (log_probs.mT, ids.mT, *key)]
    check_op(ops.coupled_log_probs, *rows[:2], -(2**62), *rows[2:], 0.7, 1.0)


@every_way
def test_compiles_with_fullgraph(impl, dynamic, kernel_device):
    def couple(log_probs, ids, streams, positions):
        key = {"seed": 2**64 - 5, "streams": streams, "positions": positions}
        return coupled_log_probs(log_probs, ids, **key, temperature=0.8, sharpness=1.5, impl=impl)

    check_compiles_whole(
        couple,
        make_candidates(2, 3, 9, 1, kernel_device),
        make_candidates(3, 4, 33, 2, kernel_device),
        dynamic=dynamic,
    )


def test_error_names_the_bad_argument(kernel_device):
    candidates = make_candidates(2, 3, 9, 1, kernel_device)

    def call(log_probs=candidates[0], ids=candidates[1], streams=candidates[2], impl="triton"):
        key = {"seed": 1, "streams": streams, "positions": candidates[3]}
        return coupled_log_probs(log_probs, ids, **key, temperature=1.0, sharpness=1.0, impl=impl)

    check_never_silent(lambda impl: call(impl=impl))
    with pytest.raises(TypeError, match="log_probs: expected torch.float32 in a kernel, got"):
        call(log_probs=candidates[0].double())
    long = torch.zeros(2, 1, 1025, device=kernel_device)
    with pytest.raises(ValueError, match="ids: expected at most 1024 candidates in a kernel, got"):
        call(log_probs=long, ids=long.long())
    assert call(log_probs=long, ids=long.long(), impl="reference").shape == long.shape
    with pytest.raises(ValueError, match="device: expected all tensors on one device"):
        call(streams=candidates[2].to("meta"))
    with pytest.raises(ValueError, match="impl: expected 'reference' where gradients are recorded"):
        call(log_probs=candidates[0].requires_grad_())
