import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_kernels_folder_is_not_an_importable_package():
    # A package called `kernels` would hide Hugging Face's, which transformers imports.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    done = run(
        "import sys; sys.path.insert(0, '.'); from transformers import LlamaForCausalLM; "
        "import kernels; assert getattr(kernels, '__file__', None) is None or 'site-packages' in kernels.__file__"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("root", ["bench", "specdec", "kernels/specdec_kernels"])
def test_folders_have_at_most_16_modules(root):
    for room in {path.parent for path in (ROOT / root).rglob("*.py")}:
        assert (room / "__init__.py").exists()
        assert len(list(room.glob("*.py"))) <= 16, room


def test_tests_and_docs_have_no_init_files():
    for folder in ("tests", "docs"):
        assert not list((ROOT / folder).rglob("__init__.py"))


@pytest.mark.parametrize("first", ["tests", "tests/support"])
@pytest.mark.parametrize("name", ["tiny", "every_drafter"])
def test_support_module_is_the_same_from_every_import_path(first, name):
    other = "tests/support" if first == "tests" else "tests"
    done = run(
        f"import sys; sys.path[:0] = ['.', 'kernels', {first!r}]; import {name} as one; "
        f"sys.path.insert(0, {other!r}); import {name} as two; assert one is two is sys.modules[{name!r}]; "
        "assert one.__file__.endswith('support/' + one.__name__ + '.py')"
    )
    assert done.returncode == 0, done.stderr


def test_tests_run_with_another_installed_package_named_tests(tmp_path):
    for name in ("tests", "bench"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('imported')")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/accept_tree/test_accept_tree.py", "-k", "padding"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def imported(path, package):
    """Name the modules that a file imports when it is imported, as far as they are of its own package."""
    names = set()
    statements = list(ast.parse(path.read_text()).body)
    while statements:
        statement = statements.pop()
        if isinstance(statement, ast.If) and "TYPE_CHECKING" not in ast.dump(statement.test):
            statements += statement.body + statement.orelse
        elif isinstance(statement, ast.Try):
            statements += statement.body
        elif isinstance(statement, ast.ImportFrom):
            base = package[: len(package) - statement.level + 1] if statement.level else []
            module = [*base, *(statement.module or "").split(".")] if statement.module else base
            names |= {".".join(module)} | {".".join([*module, a.name]) for a in statement.names}
    return names


@pytest.mark.parametrize("root", ["specdec", "kernels/specdec_kernels", "bench"])
def test_there_are_no_circular_imports(root):
    files = {}
    for path in (ROOT / root).rglob("*.py"):
        parts = path.relative_to((ROOT / root).parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for name, path in files.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        graph[name] = {other for other in imported(path, package) if other in files} - {name}
    # What a package gives out of its files is no circle of theirs.
    for name, others in graph.items():
        graph[name] = {o for o in others if not name.startswith(f"{o}.")}
    assert len(list(TopologicalSorter(graph).static_order())) == len(files) > 30
