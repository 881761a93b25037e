"""GPU properties come from the driver."""

from types import SimpleNamespace

import pytest
import torch

from specdec_kernels import gpu


@pytest.mark.parametrize(
    ("major", "minor", "shared"), [(12, 0, 101376), (8, 9, 101376), (9, 0, 232448), (7, 5, 65536)]
)
def test_shared_memory_size_comes_from_the_driver(major, minor, shared, monkeypatch):
    compiler = pytest.importorskip("triton.compiler.compiler")
    facts = SimpleNamespace(major=major, minor=minor, multi_processor_count=77)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(compiler, "max_shared_mem", {1: shared, 3: 4 * 1024}.get)
    gpu._cuda.cache_clear()
    try:
        arch = f"sm_{major}{minor}"
        assert gpu.gpu_of(torch.device("cuda", 1)) == gpu.Gpu(arch, 77, shared)
        assert gpu.gpu_of(torch.device("cuda")) == gpu.Gpu(arch, 77, 4 * 1024)
    finally:
        gpu._cuda.cache_clear()


def test_amd_architecture_name_is_stripped_of_feature_flags(monkeypatch):
    compiler = pytest.importorskip("triton.compiler.compiler")
    facts = SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-", multi_processor_count=304)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(compiler, "max_shared_mem", lambda index: 65536)
    gpu._cuda.cache_clear()
    try:
        assert gpu.gpu_of(torch.device("cuda", 0)) == gpu.Gpu("gfx942", 304, 65536)
    finally:
        gpu._cuda.cache_clear()
