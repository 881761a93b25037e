import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_kernels_is_a_container_and_never_a_package():
    # A package called `kernels` would hide Hugging Face's, which transformers imports.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    done = run(
        "import sys; sys.path.insert(0, '.'); from transformers import LlamaForCausalLM; "
        "import kernels; assert getattr(kernels, '__file__', None) is None or 'site-packages' in kernels.__file__"
    )
    assert done.returncode == 0, done.stderr


def test_containers_are_not_packages():
    for folder in ("bench", "tests", "docs"):
        assert not list((ROOT / folder).rglob("__init__.py"))


@pytest.mark.parametrize("first", ["tests", "tests/support"])
@pytest.mark.parametrize("name", ["tiny", "every_drafter"])
def test_helpers_are_one_module_wherever_they_are_imported_from(first, name):
    other = "tests/support" if first == "tests" else "tests"
    done = run(
        f"import sys; sys.path[:0] = ['.', 'kernels', {first!r}]; import {name} as one; "
        f"sys.path.insert(0, {other!r}); import {name} as two; assert one is two is sys.modules[{name!r}]; "
        "assert one.__file__.endswith('support/' + one.__name__ + '.py')"
    )
    assert done.returncode == 0, done.stderr


def test_tests_run_beside_another_package_called_tests(tmp_path):
    for name in ("tests", "bench"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('imported')")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_accept_tree.py", "-k", "padding"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
