"""A head of EAGLE-3's authors and its target."""

import shutil
from pathlib import Path

import pytest

from eagle3_heads import GOLDENS, target_of


@pytest.fixture
def target():
    return target_of("gqa_d2t")


@pytest.fixture
def head(tmp_path):
    """A copy of the authors' head, to be changed."""
    return Path(shutil.copytree(GOLDENS / "gqa_d2t" / "draft", tmp_path / "head"))
