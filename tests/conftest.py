import os
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import pytest
import torch
from hypothesis import HealthCheck, settings

# Helpers are found by name, and benchmarks in this folder, whatever other packages are called `tests` or `bench`.
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT)]

# What failed once fails again, here and elsewhere, however slow the machine.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

# Tests ask no hub for anything; read when huggingface_hub is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
# Workers, and what they start, share the processors.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
threads = max(1, torch.get_num_threads() // workers)
torch.set_num_threads(threads)
os.environ["OMP_NUM_THREADS"] = str(threads)
# Inductor's cache does not see that a fake has changed: workers share one that no other run has.
if "PYTEST_XDIST_WORKER" not in os.environ:
    inductor = TemporaryDirectory(prefix="inductor-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = inductor.name
# Without a GPU kernels run in Triton's interpreter; read when a kernel is first imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser):
    parser.addoption(
        "--device", default="cpu", help="where test_devices.py decodes: cpu, mps or cuda"
    )
    parser.addoption("--all", action="store_true", help="run all cases of sampled tests")


def pytest_collection_modifyitems(config, items):
    """Leave out most cases of sampled tests."""
    if config.getoption("--all"):
        return
    grids = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled"):
            grids[item.nodeid.partition("[")[0]].append(item)
    left_out = {item for grid in grids.values() for item in set(grid).difference(fewest(grid))}
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def fewest(cases):
    """Yield as few of a test's cases as show every value of every parameter, the same ones in every run."""
    cases, shown = sorted(cases, key=lambda case: crc32(case.nodeid.encode())), set()
    while True:
        best = max(cases, key=lambda case: len(values_of(case) - shown))
        if values_of(best) <= shown:
            return
        shown |= values_of(best)
        yield best


def values_of(case):
    return set(enumerate(case.callspec._idlist))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    item.began = spent()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    item.user_properties.append(("processor_seconds", round(spent() - item.began, 2)))


def spent():
    """Processor time of this process and of those that it has waited for."""
    return sum(os.times()[:4])


@pytest.fixture(scope="session")
def whole(request):
    """Whether all cases are asked for, in tests that choose among theirs themselves."""
    return request.config.getoption("--all")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that all workers of this run share, and no other run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def costs_that_are_known():
    """Nothing is measured: a session's cost table is the same everywhere, and so are its trees."""
    from known_costs import known_costs

    import specdec.session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specdec.session, "costs_of", known_costs)
        yield


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
