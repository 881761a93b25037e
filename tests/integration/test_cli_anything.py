"""Commands with random input end with success or one error line, never with a traceback."""

import io
import json
import shutil
import sys
from unittest.mock import patch

import pytest
import torch
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoint_parts import APPLE, KANGAROO
from specdec import cli
from specdec.sources import models

LINES = [
    {"question_id": 1, "category": "a", "turns": ["w5 w6"]},
    {"prompt_ids": [3, 4], "answer_ids": [5, 6, 7]},
    {"text": "w5 w6 w7"},
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


@st.composite
def altered(draw, fields):
    """An object with one field of something else."""
    fields = fields | {draw(st.sampled_from(list(fields))): draw(json_values)}
    return json.dumps(fields).encode()


lines = st.sampled_from(LINES).flatmap(
    lambda fields: st.just(json.dumps(fields).encode()) | altered(fields)
)
contents = st.one_of(
    st.lists(lines | st.binary(max_size=9), max_size=4).map(b"\n".join),
    lines.map(lambda line: b"\xef\xbb\xbf" + line + b"\r\n"),
    st.binary(max_size=30),
)
numbers = st.one_of(
    st.integers(-2, 4).map(str),
    st.sampled_from(["nan", "inf", "-inf", "1e-9", "0.5", "1e400", "9" * 30, "-" + "9" * 30, "1,x", "", "x", "0x1", "²"]),
)  # fmt: skip
words = st.text(max_size=6) | st.sampled_from(
    ["w1", "-", "--", "w1 \udcff", "[/bold]", ":smile:", "\0"]
)
paths = st.sampled_from(
    ["FILE", "NEW", "FOLDER", "MODEL", "DRAFTER", "APPLE", "/dev/null", "/dev/full", "/proc/x", "/no/x", "~", ""]
)  # fmt: skip
SMALL = ["--model", "MODEL"]
# What is right on its own, so that one more option decides.
COMMANDS = [
    ["generate", "w1", *SMALL, "--max-new-tokens", "2"],
    ["chat", *SMALL, "--max-new-tokens", "2"],
    ["bench", "--prompts", "FILE", *SMALL, "--max-new-tokens", "1", "--methods", "lookup"],
    ["info", *SMALL],
    ["data", "--append", "NEW", *SMALL, "--tokens", "1", "--answer-tokens", "2", "--prompts", "FILE"],
    ["data", "--append", "NEW", *SMALL, "--merge", "FILE"],
    ["data", "--stats", "FILE", *SMALL],
    ["convert", "APPLE", "NEW", "--target", "MODEL"],
    ["convert", "DRAFTER", "NEW", "--to", "apple"],
    ["train", "redrafter", "FILE", "--out", "NEW/a", "--run", "NEW/b", *SMALL, "--held-out", "1", "--batch", "1", "--epochs", "1"],
    ["train", "medusa", "FILE", "--out", "NEW/a", "--run", "NEW/b", *SMALL, "--held-out", "1", "--batch", "1", "--epochs", "1"],
    ["train", "kangaroo", "FILE", "--out", "NEW/a", "--run", "NEW/b", *SMALL, "--held-out", "1", "--batch", "1", "--epochs", "1"],
]  # fmt: skip
values = (
    numbers
    | words
    | paths
    | st.sampled_from(["bfloat16", "lookup", "plain,lookup", "meta", "plain+plain", "own"])
)


def options_of(command):
    """Every option that a command has."""
    found = typer.main.get_command(cli.app)
    for name in command[: 2 if command[0] == "train" else 1]:
        found = found.commands[name]
    return [(max(o.opts, key=len), o.is_flag) for o in found.params if o.opts[0].startswith("-")]


OPTIONS = [options_of(command) for command in COMMANDS]


@st.composite
def commands(draw):
    """A command with another value for some of its options."""
    command = draw(st.sampled_from(COMMANDS))
    options = OPTIONS[COMMANDS.index(command)]
    chosen = draw(st.lists(st.sampled_from(options), min_size=1, max_size=2))
    given = [[name] if flag else [name, draw(values)] for name, flag in chosen]
    endless = ["--epochs", "9" * 30]
    return command + [part for option in given if option != endless for part in option]


EVERYTHING = settings(
    max_examples=22, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def no_such_model(name):
    raise ValueError(f"model: expected another one, got {name}")


@pytest.fixture
def ends_well(tiny_folder, tmp_path, monkeypatch, capsys):
    """Run a command on a file's content, somewhere new; say whether it was accepted."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(models, "embedded_model_path", no_such_model)
    threads = torch.get_num_threads()
    places = {"MODEL": tiny_folder, "APPLE": str(APPLE), "DRAFTER": str(KANGAROO)}
    count = 0

    def command(arguments, content, stdin=b"w1\n/exit\n"):
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        (folder / "taken").mkdir(parents=True)
        (folder / "taken" / "x").touch()
        (folder / "file").write_bytes(content)
        here = places | {
            "FILE": f"{folder}/file",
            "NEW": f"{folder}/new",
            "FOLDER": f"{folder}/taken",
        }
        named = [here.get(argument, argument) for argument in arguments]
        named = [a.replace("NEW/", f"{folder}/new/") for a in named]
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with (
            patch.object(sys, "argv", ["specdec", *named]),
            patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8")),
            pytest.raises(SystemExit) as stopped,
        ):
            cli.main()
        torch.set_num_threads(threads)
        code, said = stopped.value.code or 0, capsys.readouterr()
        if code == 2:
            assert [line.startswith("specdec: ") for line in said.err.splitlines()][-1], said.err
            assert said.err.count("specdec: ") == 1
            assert {path: path.read_bytes() for path in before} == before
        assert code in (0, 2) or (code == 1 and "differ" in said.err), said
        assert not list(tmp_path.rglob(".specdec-*"))
        return code == 0

    return command


@EVERYTHING
@given(commands(), contents)
def test_random_options_never_cause_a_traceback(ends_well, command, content):
    ends_well(command, content)


@EVERYTHING
@given(st.lists(words | paths | st.sampled_from(["generate", "train", "--model"]), max_size=4))
def test_random_arguments_never_cause_a_traceback(ends_well, arguments):
    ends_well(arguments, b"")


@settings(EVERYTHING, max_examples=6)
@given(st.binary(max_size=20) | st.text(max_size=9).map(str.encode))
def test_random_stdin_never_causes_a_traceback(ends_well, stdin):
    for command in (["chat"], ["generate", "-"]):
        ends_well([*command, *SMALL, "--max-new-tokens", "1", "--drafter", "plain"], b"", stdin)


FILES = [
    "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "generation_config.json",
    "chat_template.jinja",
]  # fmt: skip


@EVERYTHING
@given(
    st.sampled_from(FILES), st.floats(0, 1), st.binary(max_size=4), st.booleans(), st.none() | json_values
)  # fmt: skip
def test_damaged_model_folders_never_cause_a_traceback(
    ends_well, tiny_folder, tmp_path, name, at, bits, cut, value
):
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tiny_folder, folder)
    path = folder / name
    content = path.read_bytes()
    if value is not None and name.endswith(".json"):
        fields = json.loads(content)
        fields[list(fields)[int(at * (len(fields) - 1))]] = value
        path.write_text(json.dumps(fields))
    else:
        place = int(at * len(content))
        rest = b"" if cut else content[place + len(bits) :]
        path.write_bytes(content[:place] + bits + rest)
    few = ["--max-new-tokens", "1", "--drafter", "plain"]
    ends_well(["generate", "w1", "--model", str(folder), *few], b"")
