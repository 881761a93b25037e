"""The built wheel works where the sources are not."""

import email
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from hatchling.builders.wheel import WheelBuilder

import specdec
from tiny import letters, tiny_model

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    settings["OMP_NUM_THREADS"] = "1"  # threads of other tests do not slow a tiny model's passes
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=settings, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    builder = WheelBuilder(str(ROOT))
    (built,) = builder.build(directory=str(folder), versions=["standard"])
    return Path(built)


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An environment with the wheel; a path file lends it the libraries of this one, whose own path files are not read."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "env", with_pip=False)
    executable = folder / "env" / "bin" / "python"
    site = run(
        executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    )
    lent = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (Path(site.strip()) / "lent.pth").write_text("\n".join(lent))
    pip = (sys.executable, "-m", "pip", "--python", executable, "install", "--quiet")
    run(*pip, "--no-index", "--no-deps", "--ignore-installed", wheel, cwd=folder)
    return executable


def test_wheel_holds_the_two_packages_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = f"specdec_kernels-{specdec.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"specdec", "specdec_kernels", info}
    assert not [name for name in names if "test" in Path(name).parts or "__pycache__" in name]
    for needed in (
        "specdec/py.typed",
        "specdec/drafters/calibrations.json",
        "specdec/drafters/shipped/redrafter/model.safetensors",
        "specdec/drafters/shipped/kangaroo/model.safetensors",
        "specdec_kernels/py.typed",
        f"{info}/licenses/LICENSE",
    ):
        assert needed in names


def test_wheel_metadata_names_version_license_and_command(wheel):
    files = zipfile.ZipFile(wheel)
    info = f"specdec_kernels-{specdec.__version__}.dist-info"
    facts = email.message_from_bytes(files.read(f"{info}/METADATA"))
    assert (facts["Name"], facts["Version"]) == ("specdec-kernels", specdec.__version__)
    assert (facts["License-Expression"], facts["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    assert "specdec = specdec.cli:main" in files.read(f"{info}/entry_points.txt").decode()


def test_installed_wheel_finds_its_data_without_the_sources(python, tmp_path):
    code = (
        "import sys, specdec, specdec_kernels\n"
        "from pathlib import Path\n"
        "from specdec.drafters.names import SHIPPED_FOLDER\n"
        "for package in (specdec, specdec_kernels):\n"
        "    folder = Path(package.__file__).parent\n"
        "    assert folder.is_relative_to(sys.prefix), folder\n"
        "    assert (folder / 'py.typed').exists()\n"
        "assert sorted(p.name for p in SHIPPED_FOLDER.iterdir()) == ['kangaroo', 'redrafter']\n"
    )
    run(python, "-c", code, cwd=tmp_path)
    assert "generate" in run(python.with_name("specdec"), "--help", cwd=tmp_path)


def test_readme_example_runs_from_the_installed_wheel(python, tmp_path):
    tokenizer = letters()
    tokenizer.chat_template = "bcdebcde"
    tiny_model("llama", dtype=torch.float32).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    (tmp_path / "example.py").write_text(code.replace("smollm2-135m-instruct", "model"))
    assert run(python, "example.py", cwd=tmp_path).strip()


def others():
    """Other versions of Python that `pyenv` has; none of them needs a library."""
    folder = Path.home() / ".pyenv" / "versions"
    return [
        pytest.param(python, id=python.parents[1].name)
        for minor in (12, 13)
        for python in sorted(folder.glob(f"3.{minor}.*/bin/python"))[-1:]
    ]


@pytest.mark.parametrize("other", others() or [pytest.param(None, marks=pytest.mark.skip("none"))])
def test_wheel_installs_and_compiles_on_other_versions_of_python(wheel, other, tmp_path):
    run(other, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile")
    run(*pip, "--no-index", "--no-deps", wheel, cwd=tmp_path)
    code = (
        "import compileall, pathlib, sysconfig\n"
        "import importlib.metadata\n"
        "root = pathlib.Path(sysconfig.get_path('purelib'))\n"
        "assert all(compileall.compile_dir(root / name, quiet=1) for name in ('specdec', 'specdec_kernels'))\n"
        "import specdec\n"
        "assert specdec.__version__ == importlib.metadata.version('specdec-kernels')\n"
    )
    run(python, "-W", "error::SyntaxWarning", "-c", code, cwd=tmp_path)
