"""The ops' times as a caller sees them: launches, Python and all, each way to do the same call beside the others.

    make bench
    make bench BENCH_FLAGS='-k tree_attention'

An op's own tests run first. Every other way must then give the eager reference's results before it is timed. `make gpu`
measures what the device alone takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bench.counted.work import work_of
from bench.ops.cases import OPS, Call, cases_of, take_apart
from bench.ops.peers.references import peers_of
from specdec_kernels.testing.case import Case

# The first of these runs the tests of all ops.
pytestmark = pytest.mark.timeout(3600)

WAYS = ("eager", "compiled", "kernel")
# What two CPU cores do in moments: all cases of the small model and of none, and these of larger ones.
ALSO_ON_CPU = (
    "llama3-8b-B1-N16-P2000-float32",
    "llama3-8b-B1-N64-P8000-bfloat16",
    "llama3-8b-R1-k1-bfloat16",
    "vicuna-7b-B1-float16",
    "vicuna-7b-B1-W64-L5-N256",
)
# What `torch.testing.assert_close` allows by default, here of |difference| / |expected|.
AGREES = {torch.float32: 1.3e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}


def chosen(op: str, device: str, dry: bool) -> list[Case]:
    """Return the cases of an op that this device is asked."""
    cases = cases_of(op, dry)
    if device == "cuda" or dry:
        return cases
    return [c for c in cases if c.name.startswith(("B", "smollm2")) or c.name in ALSO_ON_CPU]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        metafunc.parametrize("op", OPS)
        return
    option = metafunc.config.option
    timed = [
        (op, case.name, way)
        for op in OPS
        for case in chosen(op, option.device, option.dry)
        for way in WAYS
    ]
    metafunc.parametrize(("op", "case", "way"), timed, ids=["-".join(names) for names in timed])


def test_is_right(op: str, checked: Callable[[str], dict[str, Any]]) -> None:
    tests = checked(op)
    assert tests["ok"], tests["tail"]


@pytest.mark.benchmark(
    warmup=True, warmup_iterations=50, max_time=1.5, min_rounds=9, disable_gc=True
)
@torch.inference_mode()
def test_time(
    op: str,
    case: str,
    way: str,
    benchmark: Any,
    checked: Callable[[str], dict[str, Any]],
    machine: dict[str, Any],
    pytestconfig: pytest.Config,
) -> None:
    device, dry = pytestconfig.option.device, pytestconfig.option.dry
    if way == "kernel" and device == "cpu":
        pytest.skip("kernel: expected a CUDA device, got cpu")
    tests = checked(op)
    prepare = next(c for c in chosen(op, device, dry) if c.name == case)
    # Inductor's C++ takes long, and small shapes say nothing.
    backend = "eager" if dry else "inductor"
    call = take_apart(op, prepare, device)
    if call is None:
        pytest.skip("case: expected a call of a public function, got launches of its own")
    results = way_of(call, "eager", backend)()
    # What it writes to is not what it has to write: of a cache a few slots.
    work = work_of(call, results)
    expected = outcome(call, results)
    if way != "eager":
        call = take_apart(op, prepare, device)  # anew: the call may have written to its arguments
        assert call is not None
        assert_agrees(outcome(call, way_of(call, way, backend)()), expected, work.dtype)
    del expected, results

    benchmark.group = group_of(op, case, way, tests["ok"])
    benchmark.extra_info |= {
        "op": op,
        "case": case,
        "way": way,
        "bytes": work.bytes,
        "flops": work.flops,
        "dtype": str(work.dtype).removeprefix("torch."),
        "device": machine["device"],
        "versions": machine["versions"],
        "tests_passed": tests["ok"],
        "tests": {name: tests[name] for name in ("passed", "failed")},
    }
    run = way_of(call, way, backend)
    run = run if device == "cpu" else until_done(run)
    benchmark.pedantic(run) if dry else benchmark(run)


def way_of(call: Call, way: str, backend: str) -> Callable[[], Any]:
    return call.run if way == "kernel" else peers_of(call, backend)[way]()


def until_done(run: Callable[[], Any]) -> Callable[[], None]:
    def wait() -> None:
        run()
        torch.cuda.synchronize()

    return wait


def group_of(op: str, case: str, way: str, passed: bool) -> str:
    """Name the rows that the printed table compares: those of a case, or none with any other."""
    return f"{op} {case}" if passed else f"{op} {case} {way}, whose tests did not pass"


def outcome(call: Call, results: Any) -> list[Tensor]:
    """List all that a call has returned or written."""
    return [x for x in tree_leaves((results, call.written())) if isinstance(x, Tensor)]


def assert_agrees(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Compare numbers by their norms; ids where there are no numbers beside them, whose ties fall as they like."""
    pairs = list(zip(found, expected, strict=True))
    if not any(y.is_floating_point() for y in expected):
        assert all(torch.equal(x, y) for x, y in pairs), "ids: expected the eager reference's"
    for x, y in pairs:
        if y.is_floating_point():
            off = (x.double() - y.double())[x != y].norm().item()
            allowed = AGREES[dtype] * y[y.isfinite()].double().norm().item()
            assert off <= allowed, f"result: expected within {allowed:.3g} of eager, got {off:.3g}"
