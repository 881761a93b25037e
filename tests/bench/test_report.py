"""The pages' tables and pictures, made of whatever methods and trainings are there."""

import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
pytest.importorskip("matplotlib").use("Agg")


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
def test_comparison_tables_have_the_measured_methods(methods, tmp_path):
    from bench.report import comparison as report

    result = saved(*methods)
    results = {"float32": result, "bfloat16": saved("plain", "transformers")}
    report.draw_speedups(results, tmp_path / "speedups.png")
    assert (tmp_path / "speedups.png").stat().st_size > 10_000
    rows = len(methods) + 2
    table = report.methods_table(results)
    assert sum(line.startswith("|") for line in table.splitlines()) == 2 + rows
    assert len(report.categories_table("float32", result).splitlines()) == 2 + 13 + 1
    drafters = [m for m in methods if m != "plain" and not m.startswith("transformers")]
    assert len(report.efficiency_table({"float32": result}).splitlines()) == 2 + len(drafters)
    assert len(report.stages_table({"float32": result}).splitlines()) == 2 + 1 + len(drafters)


def test_training_table_has_a_row_per_epoch(tmp_path):
    from bench.report import training as report

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


def test_second_model_table_shows_the_measured_times():
    from bench.report.second import second_model_page

    def row(**figures):
        counts = {"tokens_per_round": 1.25, "ctar": [0.2, 0.05, 0.0], "nodes_per_round": 3.0}
        checked = {"identical": 13, "answers": 13, "new_tokens": 1000, "ties": 0, "errors": 0}
        return {**counts, **checked, **figures}

    library = row(tokens_per_round=None, ctar=None, nodes_per_round=None)
    log = [
        {"step": 9, "epoch": 1.0, "loss": 2.0},
        {"step": 9, "epoch": 1.0, "validation": {"tokens_per_round": 1.5}},
    ]
    training = {"parameters": 1000, "conversations": 10, "tokens": 5000, "log": log}
    result = {
        "machine": {"device": "cpu", "threads": 2, "dtype": "float32", "versions": {"torch": "2.13"}},
        "training": {"redrafter": training},
        "vocabulary": {"all": 262144, "draft": 8192, "bytes_per_token": 2560, "share_of_text": 0.968},
        "methods": {"plain": row(), "transformers": library, "redrafter": row()},
    }  # fmt: skip
    page = second_model_page(result)
    assert "| redrafter | 1 | 2.00 | 1.50 | - | - | - | - |" in page
    assert "| redrafter | 1.25 | 0.20, 0.05, 0.00 | 3.00 | 13/13 | 0 | 0 |" in page
    assert "| transformers | - | - | - | 13/13 | 0 | 0 |" in page
    assert (
        "8,192 of 262,144 tokens: a draft step reads 21 MB of the head instead of 671 MB." in page
    )
    assert "covers 96.8% of the 1,000 tokens" in page
    assert "draft, ms" not in page
    times = {"tokens_per_second": 20.0, "speedup_vs_plain": 1.0, "speedup_vs_transformers": 2.0}
    for method in result["methods"].values():
        method |= {**times, "ms_per_round": {"draft": 0.5, "verify": 40.0}}
    library["ms_per_round"] = {}
    page = second_model_page(result)
    assert (
        "| plain | 1.25 | 0.20, 0.05, 0.00 | 3.00 | 13/13 | 0 | 0 | 0.50 | 40.00 | 20.0 | 1.00 | 2.00 |"
        in page
    )
    assert "| transformers | - | - | - | 13/13 | 0 | 0 | - | - | 20.0 | 1.00 | 2.00 |" in page


def test_fill_keeps_text_outside_the_marks(tmp_path):
    from bench.report.pages import fill

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- a -->\nafter\n")
    fill(page, {"a": "new"})
    assert page.read_text() == "before\n<!-- a -->\n\nnew\n\n<!-- a -->\nafter\n"
    with pytest.raises(ValueError, match=r"page.md: expected the mark <!-- b --> twice, got 0"):
        fill(page, {"b": "new"})


def test_long_sentences_are_wrapped_and_tables_are_not(tmp_path):
    from bench.report.pages import fill

    page = tmp_path / "page.md"
    page.write_text("<!-- a -->\n<!-- a -->\n")
    row = f"| {'cell ' * 30}|"
    fill(page, {"a": f"{row}\n\n{'word ' * 30}"})
    lines = page.read_text().splitlines()
    assert row in lines and len(lines) == 8
    assert all(len(line) <= 100 for line in lines if line != row)


def test_figures_without_a_cpu_class_are_marked():
    from bench.report.pages import classed

    assert classed("bf16; cpu (AMD EPYC), 2 threads") == (
        "bf16; cpu (AMD EPYC, class not recorded), 2 threads"
    )
    for text in ("cpu (AMD EPYC, AVX512), 1 thread", "NVIDIA H100 (80 GB)", "gpu (x)"):
        assert classed(text) == text


def test_index_has_a_headline_of_every_topic(tmp_path):
    from bench.report.overview.headlines import headlines_table

    results = BENCH / "results"
    told = headlines_table(results)
    summary = json.loads((results / "spec_bench_cpu_float32.json").read_text())["summary"]["mixed"]
    speeds = summary["speedup_vs_transformers"], summary["speedup_vs_plain"]
    assert "float32 {:.2f} and {:.2f}".format(*speeds) in told
    assert "1 host read per round" in told
    empty = headlines_table(tmp_path)
    assert len(empty.splitlines()) == len(told.splitlines())
    assert empty.count("not measured") == 8
