"""Every op on a GPU: graph capture, bit-identical repetition, and the tensors' device."""

import pytest
import torch

from bench.ops.cases import OPS, cases_of, take_apart

SMALL = [
    pytest.param(op, case, id=f"{op}-{case.name}") for op in OPS for case in cases_of(op, dry=True)
]


def test_every_op_has_a_small_case():
    assert {parameter.values[0] for parameter in SMALL} == set(OPS)


def repeatable(op, case, device):
    return take_apart(op, case, str(device)).repeatable()


@pytest.mark.parametrize(("op", "case"), SMALL)
def test_repeated_calls_are_bit_identical(op, case, kernel_device):
    again = repeatable(op, case, kernel_device)
    first = [x.clone() for x in again()]
    assert first
    assert all(map(torch.equal, again(), first))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("op", "case"), SMALL)
def test_captured_graph_replays_bit_identically(op, case):
    again = repeatable(op, case, "cuda")
    expected = [x.clone() for x in again()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = again()
    for _ in range(20):
        graph.replay()
    assert all(map(torch.equal, found, expected))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize(("op", "case"), SMALL)
def test_kernels_run_on_the_device_of_their_tensors(op, case):
    expected, found = (repeatable(op, case, f"cuda:{index}")() for index in (0, 1))
    for x, y in zip(expected, found, strict=True):
        assert y.device.index == 1
        assert torch.equal(x, y.to(x.device))
