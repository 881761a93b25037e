"""What the ops' benchmarks run on, what is checked before them, and what their result file holds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from bench.gpu.jobs.tests import run_tests
from bench.gpu.machine import versions
from specdec.evaluate.benchmark import device_name

THREADS = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=["cpu", "cuda"])
    parser.addoption(
        "--dry",
        action="store_true",
        help="Small shapes and few tests: everything is tried, nothing is measured.",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device: expected a CUDA device, got none")


@pytest.fixture(scope="session", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config) -> dict[str, Any]:
    return describe(pytestconfig)


@pytest.fixture(scope="session")
def checked(request: pytest.FixtureRequest) -> Callable[[str], dict[str, Any]]:
    """Run the tests of every op that was asked for, and tell how one's went: once, before anything is timed."""
    items = (item for item in request.session.items if isinstance(item, pytest.Function))
    ops = sorted({item.callspec.params["op"] for item in items})
    dry, ends = request.config.option.dry, time.monotonic() + 3600
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(ops, pool.map(lambda op: run_tests(op, dry, ends), ops), strict=True))
    return found.__getitem__


def describe(config: pytest.Config) -> dict[str, Any]:
    """Say what is measured on, and with what."""
    return {
        "device": device_name(torch.device(config.option.device)),
        "threads": THREADS,
        "versions": versions(),
    }


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    return describe(config)


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    for name in commit_info.keys() - {"id", "dirty"}:
        del commit_info[name]


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["measured"] = not config.option.dry
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)  # thousands of samples; the quartiles stay
