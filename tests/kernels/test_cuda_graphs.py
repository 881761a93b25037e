"""What only a GPU can show of every op: it is captured in a graph, repeats to the bit, and stays on its device."""

import importlib
import pkgutil

import pytest
import torch
from torch.utils._pytree import tree_leaves

from specdec_kernels.testing import cases
from specdec_kernels.testing.case import Inputs

OPS = sorted(module.name for module in pkgutil.iter_modules(cases.__path__))
SMALL = [
    pytest.param(case, id=f"{op}-{case.name}")
    for op in OPS
    for case in importlib.import_module(f"{cases.__name__}.{op}").SMALL
]


def test_every_op_has_a_small_case():
    assert len(SMALL) >= len(OPS) == 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", SMALL)
def test_a_captured_graph_repeats_what_was_computed(case):
    call = case.prepare(Inputs("cuda"))
    expected = [x.clone() for x in tree_leaves(call())]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = tree_leaves(call())
    for _ in range(20):
        graph.replay()
    assert all(map(torch.equal, found, expected))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("case", SMALL)
def test_kernels_run_where_their_tensors_are(case):
    torch.manual_seed(0)
    expected = tree_leaves(case.prepare(Inputs("cuda:0"))())
    torch.manual_seed(0)
    found = tree_leaves(case.prepare(Inputs("cuda:1"))())
    for x, y in zip(expected, found, strict=True):
        assert y.device.index == 1
        assert torch.equal(x, y.to(x.device))
