"""Commands for costs and calibration: tune, calibrate, --costs, --explain."""

import json
from pathlib import Path

import pytest

from specdec.costs import measure, table
from specdec.costs.table import read_costs

QUESTIONS = Path(__file__).parents[1] / "data" / "questions.jsonl"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Tables of tiny models stay with the test, and are measured in a moment."""
    monkeypatch.setattr(table, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(measure, "SECONDS", 0.0)


def test_saved_cost_table_of_tune_is_accepted_by_other_commands(tiny_folder, run, tmp_path):
    file = tmp_path / "costs.json"
    said = run("tune", "--model", tiny_folder, "--drafter", "lookup", "--seconds", 1, "--out", file)
    assert "x one node" in said.out and "█" in said.out and "lookup" in said.out
    assert read_costs(file).drafts.keys() == {"lookup"}
    how = ("--model", tiny_folder, "--max-new-tokens", 8, "--drafter", "lookup", "--costs", file)
    assert "tokens per second" in run("generate", "w5 w6 w5", *how).out


def test_cost_table_without_the_drafter_is_rejected(tiny_folder, refused, run, tmp_path):
    file = tmp_path / "costs.json"
    run("tune", "--model", tiny_folder, "--drafter", "lookup", "--seconds", 1, "--out", file)
    line = refused("generate", "w5", "--model", tiny_folder, "--drafter", "suffix", "--costs", file)
    assert "costs: expected times of suffix, got a table of lookup" in line
    line = refused("generate", "w5", "--model", tiny_folder, "--costs", tmp_path / "none")
    assert "expected a readable JSON file" in line
    line = refused("tune", "--model", tiny_folder, "--out", tmp_path / "no" / "file")
    assert "out: expected a file in an existing folder" in line


def test_explain_shows_costs_counts_per_drafter_and_pauses(tiny_folder, run):
    how = ("--model", tiny_folder, "--max-new-tokens", 40, "--drafter", "suffix+recycling")
    said = run("generate", "w5 w6 w5 w6", *how, "--explain").out
    assert "costs here" in said and "tokens drafted" in said
    assert said.count("suffix") >= 2 and said.count("recycling") >= 2
    assert "drafting paid" in said or "drafting paused after round" in said
    assert "tokens drafted" in run("generate", "w5", *how[:-1], "plain", "--explain").out


def test_calibrate_saves_the_calibration_in_the_checkpoint_folder(tiny_folder, run, tmp_path):
    data = tmp_path / "data.jsonl"
    lines = [{"prompt_ids": [3 + i % 7, 4], "answer_ids": [5, 6, 7, 8 + i % 9]} for i in range(20)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    run(
        "train", "redrafter", data, "--out", out, "--run", tmp_path / "run", "--model", tiny_folder,
        "--epochs", 1, "--batch", 4, "--held-out", 2, "--draft-vocabulary", 0,
    )  # fmt: skip
    questions = tmp_path / "questions.jsonl"
    lines = [
        {"question_id": at, "category": "some", "turns": [f"w5 w{at} w5 w{at} w7 w5"]}
        for at in range(6, 9)
    ]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    how = ("--prompts", questions, "--max-new-tokens", 40)
    said = run("calibrate", out, *how, "--model", tiny_folder).out
    assert "share" in said and "calibration.json" in said
    kept = json.loads((out / "calibration.json").read_text())
    assert kept["rate"] >= 1 and kept["share"] > 0 and kept["step_gain"] > 0
    run("generate", "w5", "--model", tiny_folder, "--drafter", out, "--max-new-tokens", 4)
    file = tmp_path / "lookup.json"
    run("calibrate", "lookup", *how, "--model", tiny_folder, "--json", file)
    assert json.loads(file.read_text())["tables"]["follows"]


@pytest.mark.parametrize("name", ["mixed", "lookup+suffix", "auto", "plain"])
def test_calibrating_a_union_is_rejected(tiny_folder, refused, name):
    line = refused("calibrate", name, "--prompts", QUESTIONS, "--model", tiny_folder)
    assert "drafter: expected a single drafter" in line
