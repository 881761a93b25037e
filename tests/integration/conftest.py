"""Fixtures: commands run in this process, a tiny model, and the default model, loaded once per setting."""

import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specdec import cli
from specdec.load import load_target
from tiny import tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A model on disk, small enough to run whole commands with."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama", dtype=torch.float32).save_pretrained(folder)
    vocabulary = {"<unk>": 0} | {f"w{i}": i for i in range(1, 61)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}w1"
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command in this process."""

    def command(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["specdec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        assert (stopped.value.code or 0) == code, said
        return said

    threads = torch.get_num_threads()
    yield command
    torch.set_num_threads(threads)


@pytest.fixture
def refused(run):
    """Run a command that ends with exit code 2 and one line, which is returned."""

    def command(*arguments):
        (line,) = run(*arguments, code=2).err.strip().splitlines()
        assert line.startswith("specdec: ")
        return line

    return command


@pytest.fixture(scope="session")
def target32():
    return load_target(dtype=torch.float32)


@pytest.fixture(scope="session")
def exact16():
    try:
        return load_target(dtype=torch.bfloat16, exact=True)
    except ValueError as error:
        if not str(error).startswith("exact:"):
            raise
        pytest.skip(f"this machine cannot: {error}")
