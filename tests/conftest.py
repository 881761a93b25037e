import os
from collections import defaultdict
from zlib import crc32

import pytest
import torch
from hypothesis import HealthCheck, settings

# What failed once fails again, here and elsewhere, however slow the machine.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

# Tests ask no hub for anything; read when huggingface_hub is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
# Workers share the processors.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
torch.set_num_threads(max(1, torch.get_num_threads() // workers))
# Without a GPU kernels run in Triton's interpreter; read when a kernel is first imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser):
    parser.addoption(
        "--device", default="cpu", help="where test_devices.py decodes: cpu, mps or cuda"
    )
    parser.addoption("--all", action="store_true", help="run all cases of sampled tests")


def pytest_collection_modifyitems(config, items):
    """Of each sampled test leave the cases that show a value not seen in those before, in an order that mixes values."""
    if config.getoption("--all"):
        return
    cases, left_out = defaultdict(list), set()
    for item in items:
        if item.get_closest_marker("sampled"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for grid in cases.values():
        seen = set()
        for item in sorted(grid, key=lambda item: crc32(item.nodeid.encode())):
            values = set(item.callspec.indices.items())
            if values <= seen:
                left_out.add(item)
            seen |= values
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def device(request):
    """The device asked for; one that is not there is an error and no reason to skip."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def kernel_device():
    """The device that kernels run on: a GPU, or the CPU under the interpreter."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    from specdec_kernels.testing.interpreter import teach_bfloat16

    teach_bfloat16()
    return torch.device("cpu")
