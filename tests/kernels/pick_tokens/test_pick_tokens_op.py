"""Picking as an op: registration, compilation, errors."""

import pytest

from ladder import check_compiles_whole, check_never_silent, check_op, every_way
from pick_problems import make_logits
from specdec_kernels import pick_tokens
from specdec_kernels._ops import ops


def test_op_passes_opcheck(kernel_device):
    logits, streams, positions = make_logits(3, 140, 1, kernel_device)
    check_op(ops.pick_tokens, logits, 7, streams, positions, 1.0, None, None)
    check_op(ops.pick_tokens, logits[:, 5:99], -7, streams, positions, 0.7, 9, 0.9)
    halves = logits.bfloat16()[::2]
    check_op(ops.pick_tokens, halves, 2**62, streams[::2], positions[::2], 0.7, None, 0.9)


@every_way
def test_compiles_with_fullgraph(impl, dynamic, kernel_device):
    def pick(logits, streams, positions):
        key = {"seed": 2**64 - 5, "streams": streams, "positions": positions}
        return pick_tokens(logits, **key, temperature=0.8, top_k=9, top_p=0.9, impl=impl)

    check_compiles_whole(
        pick,
        make_logits(3, 140, 1, kernel_device),
        make_logits(5, 150, 2, kernel_device),
        dynamic=dynamic,
    )


def test_error_names_the_bad_argument(kernel_device):
    logits, streams, positions = make_logits(3, 140, 1, kernel_device)

    def call(logits=logits, streams=streams, impl="triton"):
        pick_tokens(logits, seed=1, streams=streams, positions=positions, impl=impl)

    check_never_silent(lambda impl: call(impl=impl))
    with pytest.raises(
        TypeError, match="logits: expected float32, float16 or bfloat16 in a kernel"
    ):
        call(logits=logits.double())
    with pytest.raises(ValueError, match="logits: expected a contiguous last dimension"):
        call(logits=logits.T.contiguous().T)
    with pytest.raises(ValueError, match="device: expected all tensors on one device"):
        call(streams=streams.to("meta"))
    with pytest.raises(ValueError, match="impl: expected 'reference' where gradients are recorded"):
        call(logits=logits.requires_grad_())
