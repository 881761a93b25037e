"""The kernels package imports and computes without Triton and transformers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKED = (
    "import sys\nfor name in ('triton', 'transformers', 'specdec'): sys.modules[name] = None\n"
)
TREE = """
import torch
from specdec_kernels import PackedTree, accept_tree, pack_tree
def pack(impl):
    row = torch.tensor([[1, 2]])
    return pack_tree(row[:, 0], row, row - 2, -row.float(), capacity=3, max_depth=2, impl=impl)
"""


def run(code, **variables):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | variables
    environment["PYTHONPATH"] = str(ROOT / "kernels")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_neither_triton_nor_transformers():
    run(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import specdec_kernels\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'triton', 'transformers', 'specdec'}, new\n"
    )


def test_references_run_without_triton_and_transformers():
    run(
        BLOCKED + TREE + "for impl in ('auto', 'reference'):\n"
        "    tree = pack(impl)\n"
        "    assert tree.parents.tolist() == [[-1, 0, 1]], tree\n"
        "    path, lengths, _ = accept_tree(*tree[:5], torch.tensor([[1, 7, 8]]), impl=impl)\n"
        "    assert path.tolist() == [[0, 1, -1]] and lengths.tolist() == [1]\n"
    )


def test_modules_with_weights_run_without_triton_and_transformers():
    run(
        BLOCKED + "import torch\n"
        "from specdec_kernels import LMHeadTopK, beam_step\n"
        "top = LMHeadTopK(torch.nn.Linear(4, 9))(torch.randn(2, 4), 3)\n"
        "beams = beam_step(torch.zeros(2, 1), top.log_probs[:, None], top.ids[:, None], 2)\n"
        "assert beams.tokens.shape == (2, 2)\n"
    )


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_impl_triton_raises_import_error_without_triton(interpret):
    code = "try:\n    pack('triton')\nexcept ImportError as error:\n    print(error)\n"
    assert "triton" in run(BLOCKED + TREE + code, TRITON_INTERPRET=interpret)


def test_impl_triton_raises_value_error_without_a_gpu():
    code = "try:\n    pack('triton')\nexcept ValueError as error:\n    print(error)\n"
    assert "impl: expected a CUDA device or TRITON_INTERPRET=1" in run(TREE + code)


def test_impl_triton_runs_in_the_interpreter():
    run(TREE + "assert pack('triton').tokens.tolist() == [[1, 1, 2]]\n", TRITON_INTERPRET="1")
