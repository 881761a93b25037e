"""The other project named `specdec` on PyPI."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from specdec.host.other_project import refuse_other_project

ROOT = Path(__file__).parents[3]
THEIRS = "from .decoder import SpecDecoder\n"


def test_other_project_in_the_same_folder_raises_an_error_with_its_version(tmp_path):
    (tmp_path / "specdec-0.2.0.dist-info").mkdir()
    with pytest.raises(ImportError, match=r"got the distribution specdec 0\.2\.0 .*pip uninstall"):
        refuse_other_project(tmp_path)


def test_own_distribution_raises_no_error(tmp_path):
    (tmp_path / "specdec_kernels-0.1.0.dist-info").mkdir()
    (tmp_path / "specdec").mkdir()
    refuse_other_project(tmp_path)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_import_fails_whichever_project_was_installed_first(tmp_path, first):
    shutil.copytree(
        ROOT / "specdec", tmp_path / "specdec", ignore=shutil.ignore_patterns("shipped")
    )
    (tmp_path / "specdec-0.2.0.dist-info").mkdir()
    (tmp_path / "specdec" / "decoder.py").write_text("SpecDecoder = None\n")
    if first == "ours":
        (tmp_path / "specdec" / "__init__.py").write_text(THEIRS)
        ways_in = ["from specdec.cli import main", "from specdec.session import Session"]
    else:
        ways_in = ["import specdec"]
    for way in ways_in:
        done = subprocess.run(
            [sys.executable, "-c", way], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert "ImportError: specdec: expected specdec-kernels alone" in done.stderr, way
