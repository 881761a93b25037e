"""What the compatibility run notes of tests and kernels, and how it is told."""

import json

import pytest

TESTS = """
import pytest

def test_passes():
    pass

def test_fails():
    assert False

@pytest.fixture
def broken():
    raise RuntimeError

def test_errs(broken):
    pass

@pytest.mark.skip
def test_is_skipped():
    pass

@pytest.mark.model
def test_needs_the_model():
    assert False
"""


@pytest.fixture
def compat():
    from bench.releases import compat

    return compat


def test_tests_are_counted_by_how_they_end(compat, monkeypatch, tmp_path):
    for name in ("test_one.py", "test_two.py"):
        (tmp_path / name).write_text(TESTS)
    monkeypatch.setattr(compat, "ROOT", tmp_path)
    monkeypatch.setattr(compat, "CORE", (("test_o*.py",), ("test_two.py",)))
    counts, broken = compat.run_tests(tmp_path)
    assert counts == {"passed": 2, "failed": 4, "skipped": 2}
    assert sorted(broken) == [
        f"{name}::{found}"
        for name in ("test_one", "test_two")
        for found in ('test_errs: failed on setup with "RuntimeError"', "test_fails: assert False")
    ]


def test_failures_are_kept_and_reported(compat, monkeypatch, tmp_path):
    from bench.report.compat import compat_table

    place = {"op": "pack_tree", "case": "B1", "arch": "sm_80"}
    rows = [
        {**place, "kernel": "_a_kernel", "spills": 0, "registers": 40},
        {**place, "kernel": "_b_kernel", "spills": 16, "registers": 48},
        {**place, "arch": "gfx942", "error": "RuntimeError: no"},
    ]
    monkeypatch.setattr(
        compat, "run_python", lambda *command: command[-1].write_text(json.dumps(rows))
    )
    kernels = compat.compile_covering(tmp_path)
    assert kernels == {
        "compiled": 2,
        "failed": [{**place, "arch": "gfx942"}],
        "spilled": [{**place, "kernel": "_b_kernel", "spills": 16}],
    }

    monkeypatch.setattr(compat, "KEPT", tmp_path / "compat.json")
    tests = {"passed": 7, "failed": 2, "skipped": 3}
    for name, version in (("oldest", "3.6.0"), ("newest", "3.8.0"), ("newest", "3.9.0")):
        versions = {"triton": version}
        compat.keep(name, {"versions": versions, "kernels": kernels, "tests": tests})
    assert compat_table(json.loads(compat.KEPT.read_text())).splitlines()[2:] == [
        "| oldest | 3.6.0 | 7 | 2 | 3 | 2 | 1 | 1 |",
        "| newest | 3.9.0 | 7 | 2 | 3 | 2 | 1 | 1 |",
    ]
