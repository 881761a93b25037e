"""Invalid model folders give one error line and exit code 2."""

import json
import shutil
from pathlib import Path

import pytest

from checkpoint_parts import APPLE
from specdec.sources import models

QUESTIONS = Path(__file__).parents[1] / "data" / "questions.jsonl"


def test_tokenizer_is_required_only_by_commands_that_use_it(
    tiny_folder, run, refused, tmp_path, monkeypatch
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    for path in folder.glob("token*"):
        path.unlink()
    (folder / "chat_template.jinja").unlink()
    assert "LlamaForCausalLM" in run("info", "--model", folder).out
    # Of another width: what is wrong with it is said, and no tokenizer is missed.
    assert "48" in refused("convert", APPLE, tmp_path / "x", "--target", folder)
    for command in (
        ["generate", "w1"],
        ["chat"],
        ["bench", "--prompts", QUESTIONS],
        ["data", "--append", tmp_path / "d"],
    ):
        line = refused(*command, "--model", folder)
        assert line.startswith("specdec: model: expected ")
        assert str(folder) in line


def test_missing_chat_template_is_rejected(tiny_folder, refused, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").unlink()
    for command in (
        ["generate", "w1"],
        ["chat"],
        ["bench", "--prompts", QUESTIONS],
        ["data", "--append", tmp_path / "d"],
    ):
        assert "expected a tokenizer with a chat template" in refused(*command, "--model", folder)


def test_revision_and_trust_remote_code_are_passed_to_from_pretrained(
    run, refused, tiny_folder, monkeypatch, tmp_path
):
    for option in (["--revision", "v1"], ["--trust-remote-code"]):
        name = option[0][2:].replace("-", "_")
        for command in (
            ["generate", "w1"],
            ["info"],
            ["data", "--append", tmp_path / "x"],
            ["convert", APPLE, tmp_path / "y"],
        ):
            assert f"{name}: expected" in refused(*command, *option)
    seen = []
    load = models.AutoModelForCausalLM.from_pretrained

    def spy(source, **options):
        seen.append((options["revision"], options["trust_remote_code"]))
        return load(source, **options)

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", spy)
    ask = ("generate", "w1", "--model", tiny_folder, "--max-new-tokens", 1)
    run(*ask, "--revision", "v1", "--trust-remote-code")
    assert seen == [("v1", True)]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer_config.json", {"model_max_length": []}),
        ("tokenizer_config.json", {"model_max_length": "x"}),
        ("generation_config.json", {"eos_token_id": [[2]]}),
        ("generation_config.json", {"eos_token_id": 2.5}),
        ("generation_config.json", {"eos_token_id": "end"}),
        ("chat_template.jinja", "{% for m in messages %}"),
        ("chat_template.jinja", "{{ messages[0].content.wrong() }}"),
        ("chat_template.jinja", "{{ raise_exception('roles must alternate') }}"),
        ("tokenizer.json", ""),
        ("tokenizer.json", "[]"),
    ],
)
def test_invalid_model_config_files_give_one_error_line(
    tiny_folder, refused, tmp_path, name, change
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    path = folder / name
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change)
    path.write_text(change)
    assert "model: expected " in refused("generate", "w1", "--model", folder)
