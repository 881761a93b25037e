"""`make bench` on small shapes; its tables; and that nothing is told to be faster whose tests did not pass."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytest.importorskip("matplotlib").use("Agg")

BREAKS_OPS = """
def pytest_runtest_call(item):
    assert "tests/kernels" not in item.path.as_posix(), "broken on purpose"
"""


def run_bench(folder, *options, **environment):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "bench/ops/bench_ops.py",
        "--dry",
        "-k",
        "accept_tree",
    ]
    command += ["-p", "no:cacheprovider", "--benchmark-json", str(folder / "ops_cpu.json")]
    # Within a worker nothing would be timed.
    inherited = {name: x for name, x in os.environ.items() if "XDIST" not in name}
    environment = {**inherited, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return done, json.loads((folder / "ops_cpu.json").read_text())


@pytest.mark.slow
def test_op_is_tested_then_timed_and_dry_runs_give_no_table(tmp_path):
    from bench.report.ops import NOT_MEASURED, ops_page

    done, content = run_bench(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "3 passed, 1 skipped" in done.stdout  # there is no kernel on a CPU
    assert "(1.0)" in done.stdout
    for row, way in zip(content["benchmarks"], ("eager", "compiled"), strict=True):
        facts = row["extra_info"]
        assert (facts["op"], facts["case"], facts["way"]) == ("accept_tree", "B2-N9", way)
        assert facts["bytes"] > 0 and facts["dtype"] == "float32"
        assert facts["versions"]["torch"] == torch.__version__
        assert facts["tests_passed"] and facts["tests"]["passed"] > 0
        assert "data" not in row["stats"]
    assert not content["measured"]
    assert ops_page(tmp_path, tmp_path) == NOT_MEASURED


@pytest.mark.slow
def test_failed_tests_prevent_a_comparison(tmp_path):
    from bench.report.ops import op_table

    (tmp_path / "breaks_ops.py").write_text(BREAKS_OPS)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done, content = run_bench(tmp_path, PYTHONPATH=paths, PYTEST_ADDOPTS="-p breaks_ops")
    assert done.returncode == 1, done.stdout
    assert "broken on purpose" in done.stdout
    assert "1 failed, 2 passed, 1 skipped" in done.stdout
    assert "(1.0)" not in done.stdout  # how pytest-benchmark marks what it compares others with
    rows = content["benchmarks"]
    assert [row["extra_info"]["tests_passed"] for row in rows] == [False, False]
    told = op_table(rows, {})
    assert all(line.endswith("| - |") for line in told.splitlines()[2:4])
    assert told.endswith("No speed-ups: some of the op's tests failed in this run.")


def benchmark_row(op, case, way, microseconds, passed=True, flops=0):
    stats = {"median": microseconds, "iqr": 0.2 * microseconds}
    stats |= {"q1": 0.9 * microseconds, "q3": 1.1 * microseconds}
    facts = {"op": op, "case": case, "way": way, "bytes": 4000, "flops": flops}
    return {
        "fullname": f"bench/ops/bench_ops.py::test_time[{op}-{case}-{way}]",
        "stats": {name: value * 1e-6 for name, value in stats.items()},
        "extra_info": {**facts, "tests_passed": passed},
    }


def saved():
    machine = {"device": "cpu (made up)", "threads": 2, "versions": {"torch": "2.13"}}
    rows = [
        benchmark_row("right", "B1", "eager", 20.0, flops=8000),
        benchmark_row("right", "B1", "compiled", 10.0, flops=8000),
        benchmark_row("right", "B8", "eager", 103.0),
        benchmark_row("right", "B8", "compiled", 100.0),
        benchmark_row("wrong", "B1", "eager", 20.0, passed=False),
        benchmark_row("wrong", "B1", "compiled", 10.0, passed=False),
    ]
    return {"measured": True, "machine_info": machine, "benchmarks": rows}


def test_times_become_tables_and_pictures(tmp_path):
    from bench.report.ops import ops_page, spread_of

    first = saved()
    (tmp_path / "ops_cpu.json").write_text(json.dumps(first))
    page = ops_page(tmp_path, tmp_path)
    assert "| B1, compiled | 10 | 2 | 0.4 | 0.8 | 2.00 |" in page
    assert "| B8, compiled | 100 | 20 | 0.04 | - | 1.03 |" in page
    right, wrong = page.split("### `wrong`")
    assert "No speed-ups" in wrong and "No speed-ups" not in right
    assert "| B1, compiled | 10 | 2 | 0.4 | - | - |" in wrong
    for op in ("right", "wrong"):
        assert (tmp_path / f"bench_{op}_cpu.png").stat().st_size > 5000
        assert f"![Times](../pictures/bench_{op}_cpu.png)" in page
    assert "| B1, eager | 20 | 4 | 0.2 | 0.4 | - |" in page
    assert "The difference between two runs was not measured." in page

    second = copy.deepcopy(first)
    second["benchmarks"][3]["stats"]["median"] *= 0.95
    (tmp_path / "ops_cpu_spread.json").write_text(json.dumps(spread_of(first, second)))
    page = ops_page(tmp_path, tmp_path)
    assert "| B8, compiled | 100 | 20 | 0.04 | - | 1.03 (noise) |" in page
    assert "| B1, compiled | 10 | 2 | 0.4 | 0.8 | 2.00 |" in page


def test_two_runs_are_compared_by_their_medians():
    from bench.report.ops import spread_of

    first, second = saved(), saved()
    second["benchmarks"][0]["stats"]["median"] *= 1.25
    del second["benchmarks"][5]
    for row in second["benchmarks"]:
        row["fullname"] = row["fullname"].replace("bench/ops/", "bench/")  # where it was once
    spread = spread_of(first, second)
    assert spread["benchmarks"] == 5
    assert (spread["median"], spread["largest"]) == (1.0, pytest.approx(1.25))
    assert spread["largest_of"] == "right-B1-eager"
    assert spread["largest_by_op"] == {"right": pytest.approx(1.25), "wrong": 1.0}
    second["machine_info"] = {"device": "another"}
    with pytest.raises(ValueError, match="second: expected a run on"):
        spread_of(first, second)


def test_peer_with_other_results_is_not_timed():
    from bench.ops.bench_ops import assert_agrees

    numbers, ids = torch.randn(3, 50), torch.arange(6)
    assert_agrees([numbers * (1 + 1e-7), ids], [numbers, ids], torch.float32)
    assert_agrees([torch.tensor([-torch.inf, 1])], [torch.tensor([-torch.inf, 1])], torch.float32)
    for wrong in (numbers * (1 + 1e-5), numbers.where(numbers < 1, torch.nan)):
        with pytest.raises(AssertionError, match="result: expected within"):
            assert_agrees([wrong], [numbers], torch.float32)
    with pytest.raises(AssertionError, match="ids: expected the eager reference's"):
        assert_agrees([ids.flip(0)], [ids], torch.float32)
