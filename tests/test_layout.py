import subprocess
import sys
from pathlib import Path

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
