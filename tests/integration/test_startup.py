"""Help and usage errors do not import torch, and transformers is imported lazily."""

import json
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import specdec

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "numpy", "tokenizers", "safetensors", "huggingface_hub"}
QUESTIONS = "tests/data/questions.jsonl"
HELP = [
    [], ["--help"], ["train"], ["generate", "--help"], ["chat", "--help"], ["bench", "--help"], ["info", "--help"],
    ["data", "--help"], ["convert", "--help"], ["train", "redrafter", "--help"],
]  # fmt: skip
MISTAKES = [
    ["magic"],
    ["train", "magic"],
    ["generate", "--magic"],
    ["generate", "x", "y"],
    ["generate", "x", "--dtype", "int8"],
    ["generate", "x", "--seed"],
    ["generate", "x", "--max-nodes", "0"],
    ["generate", "x", "--max-new-tokens", "many"],
    ["generate", "x", "--temperature", "nan"],
    ["generate", "x", "--top-p", "0.5"],
    ["generate", "x", "--threads", "0"],
    ["generate", "x", "--drafter", "magic"],
    ["generate", " "],
    ["chat", "--drafter", "lookup+"],
    ["bench"],
    ["bench", "--prompts", "/no/where.jsonl"],
    ["bench", "--prompts", QUESTIONS, "--methods", ","],
    ["bench", "--prompts", QUESTIONS, "--json", "/dev/null"],
    ["data"],
    ["data", "--append", "/no/where.db"],
    ["data", "--append", "a", "--stats", QUESTIONS],
    ["data", "--append", "a", "--merge", "b", "--prompts", QUESTIONS],
    ["train", "redrafter", QUESTIONS, "--out", "a", "--run", "b", "--labels", "data"],
    ["train", "kangaroo", QUESTIONS, "--out", "a", "--run", "b", "--exit-layers", "1,x"],
    ["train", "medusa", QUESTIONS, "--out", "a", "--run", "b", "--head-weights", "1,x"],
    ["convert", "a", "/dev/null"],
]
# One after the other in one process, which keeps what any of them loads.
COMMANDS = """
import json, sys
from specdec.cli import main
for arguments in json.load(sys.stdin):
    sys.argv = ['specdec', *arguments]
    try:
        main()
    except SystemExit as stopped:
        loaded = {name.partition('.')[0] for name in sys.modules}
        print(json.dumps([arguments, stopped.code or 0, sorted(loaded & %r)]))
"""
LOADED = """
import json, sys
%s
print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules} & %r)))
"""


def printed(code, given=""):
    """Run code in a new process; return what it printed, without what is no JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, input=given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def loaded(code):
    return set(printed(LOADED % (code, HEAVY))[-1])


@pytest.mark.parametrize(("commands", "code"), [(HELP, 0), (MISTAKES, 2)])
def test_help_and_usage_errors_do_not_import_torch(commands, code):
    ended = printed(COMMANDS % HEAVY, json.dumps(commands))
    assert ended == [[arguments, code, []] for arguments in commands]


def test_transformers_is_imported_lazily():
    assert not loaded("import specdec; dir(specdec)")
    assert not loaded("from specdec import DEFAULT_MODEL, drafters, checkpoints")
    assert "transformers" in loaded("from specdec import generate")


@pytest.mark.parametrize("package", ["", ".drafters", ".checkpoints"])
def test_every_public_name_resolves_and_is_listed_by_dir(package):
    module = import_module(f"specdec{package}")
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is vars(module)[name]
    with pytest.raises(
        AttributeError, match=f"module '{module.__name__}' has no attribute 'magic'"
    ):
        _ = module.magic


def test_lazily_imported_names_can_be_pickled():
    for name in ("generate", "load_target", "Session", "Metrics"):
        value = getattr(specdec, name)
        assert pickle.loads(pickle.dumps(value)) is value
