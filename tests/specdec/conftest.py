"""A whole tiny model in a folder, to load and to damage."""

import shutil
from pathlib import Path

import pytest
import torch

from tiny import letters, tiny_model


@pytest.fixture(scope="session")
def whole_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny_model("llama", dtype=torch.float32).save_pretrained(folder)
    letters().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole_folder, tmp_path):
    return Path(shutil.copytree(whole_folder, tmp_path / "model"))
