"""The pages' tables and pictures, made of whatever methods and trainings are there."""

import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
pytest.importorskip("matplotlib").use("Agg")


@pytest.fixture(autouse=True)
def bench_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)


def saved(*methods):
    """The stored comparison, with the methods asked for; a new one is told as lookup under its name."""
    result = json.loads((BENCH / "results" / "spec_bench_cpu_float32.json").read_text())
    source = {m: m if m in result["summary"] else "lookup" for m in methods}
    runs = [
        {**run, "method": m}
        for m in methods
        for run in result["runs"]
        if run["method"] == source[m]
    ]
    summary = {m: result["summary"][source[m]] for m in methods}
    return {**result, "runs": runs, "summary": summary}


@pytest.mark.parametrize(
    "methods",
    [
        ("plain", "transformers"),
        ("plain", "transformers", "lookup", "redrafter"),
        ("kangaroo", "plain", "transformers", "transformers-lookup", "lookup", "redrafter", "mixed", "./folder"),
    ],
    ids=len,
)  # fmt: skip
def test_a_comparison_is_told_for_the_methods_that_are_there(methods, tmp_path):
    import report_comparison as report

    result = saved(*methods)
    results = {"float32": result, "bfloat16": saved("plain", "transformers")}
    report.draw_speedups(results, tmp_path / "speedups.png")
    assert (tmp_path / "speedups.png").stat().st_size > 10_000
    rows = len(methods) + 2
    for text in (report.readme_table(results), report.methods_table(results)):
        assert sum(line.startswith("|") for line in text.splitlines()) == 2 + rows
    assert len(report.categories_table("float32", result).splitlines()) == 2 + 13 + 1
    drafters = [m for m in methods if m != "plain" and not m.startswith("transformers")]
    assert len(report.efficiency_table({"float32": result}).splitlines()) == 2 + len(drafters)
    assert len(report.stages_table({"float32": result}).splitlines()) == 2 + 1 + len(drafters)


def test_a_training_is_told_by_epochs(tmp_path):
    import report_training as report

    log = [
        {"step": 50, "epoch": 50 / 60, "loss": 3.0},
        {"step": 60, "epoch": 1.0, "loss": 1.8},
        {"step": 60, "epoch": 1.0, "validation": {"tokens_per_round": 1.5, "nodes_per_round": 4.0, "ctar_1": 0.5}},
        {"step": 100, "epoch": 100 / 60, "loss": 1.0},
        {"step": 120, "epoch": 2.0, "loss": 1.3},
        {"step": 120, "epoch": 2.0, "validation": {"tokens_per_round": 2.0, "nodes_per_round": 4.0, "ctar_1": 0.6}},
    ]  # fmt: skip
    reports = {"kangaroo": {"parameters": 1000, "conversations": 10, "tokens": 5000, "log": log}}
    assert report.training_table(reports).splitlines()[2:] == [
        "| kangaroo | 1 | 2.80 | 1.50 | 4.00 | 0.50 | - | - |",
        "| kangaroo | 2 | 1.10 | 2.00 | 4.00 | 0.60 | - | - |",
    ]
    assert report.sizes_table(reports).endswith("| kangaroo | 1,000 | 10 | 5,000 | 120 |")
    report.draw_training(reports, tmp_path / "training.png")
    assert (tmp_path / "training.png").exists()


def test_a_page_keeps_what_is_outside_its_marks(tmp_path):
    from pages import fill

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- a -->\nafter\n")
    fill(page, {"a": "new"})
    assert page.read_text() == "before\n<!-- a -->\n\nnew\n\n<!-- a -->\nafter\n"
    with pytest.raises(ValueError, match=r"page.md: expected the mark <!-- b --> twice, got 0"):
        fill(page, {"b": "new"})
