"""Kernels compile for absent GPUs, without spills or TF32 and with tensor cores."""

import json
import re

import pytest
import torch
from filelock import FileLock

from compiling import ROOT, compile_in_another_process
from specdec_kernels import RecurrentDraftStep, lm_head_beams
from specdec_kernels.gpu import KNOWN, pretend
from specdec_kernels.testing.calls import counted_calls
from specdec_kernels.testing.case import ARCHS, Inputs
from specdec_kernels.testing.cases import accept_tree, commit_kv, pack_tree

MOST = 80


@pytest.fixture(scope="module")
def compiled(shared_folder):
    """Every covering case on every GPU it covers, compiled in a process that does not interpret, once for all workers."""
    results = shared_folder / "compiled.json"
    with FileLock(results.with_suffix(".lock")):
        if not results.exists():
            run = compile_in_another_process(
                "-m", "bench.counted.aot", "--covering", "--json", results
            )
            assert results.exists(), run.stderr
    return json.loads(results.read_text())


def where(row):
    return f"{row['op']} {row['case']} {row.get('kernel', '')} {row['arch']}"


def assert_none(rows, why):
    assert not rows, "\n".join(f"{where(row)}: {why(row)}" for row in rows)


@pytest.mark.slow
def test_every_kernel_compiles_for_every_architecture(compiled):
    assert_none([row for row in compiled if "error" in row], lambda row: row["error"])
    kernels = {row["kernel"] for row in compiled}
    # Every kernel of the package is among them, on each GPU.
    sources = (ROOT / "kernels/specdec_kernels").rglob("*.py")
    kernel = re.compile(r"@triton\.jit(?:\([^()]*\))?\ndef (_\w+_kernel)\(")
    defined = {name for source in sources for name in kernel.findall(source.read_text())}
    assert kernels == defined
    assert {(row["kernel"], row["arch"]) for row in compiled} == {
        (kernel, arch) for kernel in kernels for arch in ARCHS
    }
    assert len(compiled) <= MOST


@pytest.mark.slow
def test_no_kernel_spills_registers_to_local_memory(compiled):
    assert_none([row for row in compiled if row["spills"]], lambda row: f"{row['spills']} spilled")
    local = "loads of local memory"
    assert_none(
        [row for row in compiled if row["instructions"][local]],
        lambda row: f"{row['instructions'][local]} {local}",
    )


@pytest.mark.slow
def test_shared_memory_fits_each_gpu(compiled):
    assert_none(
        [row for row in compiled if row["shared_bytes"] > KNOWN[row["arch"]].shared_bytes],
        lambda row: f"{row['shared_bytes']} bytes",
    )


@pytest.mark.slow
def test_no_kernel_uses_tf32(compiled):
    assert_none([row for row in compiled if row["tf32"]], lambda row: "TF32")


@pytest.mark.slow
def test_large_products_use_the_tensor_cores_of_their_gpu(compiled):
    unit = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCMMA", "gfx942": "MFMA"}
    large = [row for row in compiled if row["dot_rows"] >= 64]
    assert {row["arch"] for row in large} == set(ARCHS)
    assert_none(
        [row for row in large if not row["instructions"][unit[row["arch"]]]],
        lambda row: f"no {unit[row['arch']]} for {row['dot_rows']} rows",
    )


@pytest.mark.slow
def test_matrix_kernels_load_16_bytes_at_a_time(compiled):
    products = [row for row in compiled if row["dot_rows"]]
    assert products
    assert_none(
        [row for row in products if not row["instructions"]["loads of 16 bytes"]],
        lambda row: f"none of {row['instructions']['loads']} loads",
    )


SPOILED = """
import torch, triton, triton.language as tl
from specdec_kernels.testing.aot import compile_launches

@triton.jit
def square(x, o, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i[:, None] * N + i[None, :])
    tl.store(o + i[:, None] * N + i[None, :], tl.dot(a, a) + a)

x = torch.empty(128, 128)
(bad,) = compile_launches("sm_80", lambda: square[(1,)](x, x, 128, num_warps=2))
assert bad.tf32 and bad.spills > 0 and bad.instructions["loads of local memory"] > 0, bad
x = torch.empty(64, 64, dtype=torch.float16)
(good,) = compile_launches("sm_90", lambda: square[(1,)](x, x, 64, num_warps=4))
assert not good.tf32 and not good.spills and good.dot_rows == 64 and good.instructions["HGMMA"], good
"""


def test_checks_detect_tf32_and_spills_in_a_bad_kernel(tmp_path):
    """A kernel that multiplies in TF32 and holds more than registers can is seen as such."""
    script = tmp_path / "spoiled.py"
    script.write_text(SPOILED)
    result = compile_in_another_process(script)
    assert result.returncode == 0, result.stderr


def launches_of(call):
    with pretend(KNOWN["sm_90"]), counted_calls(dry=True) as calls:
        call()
    return calls.counts.kernels.total()


def test_draft_step_takes_three_launches_and_one_per_block():
    size, vocabulary, width, blocks = 64, 1000, 4, 2
    step = RecurrentDraftStep(size, residual_blocks=blocks).requires_grad_(False)
    tokens, parents = torch.zeros(2, 1, width, dtype=torch.int64)
    states, context = torch.zeros(1, width, size), torch.zeros(1, size)
    embedding, head = torch.zeros(vocabulary, size), torch.zeros(vocabulary, 2 * size)
    part = step.context_part(context)

    def draft():
        _, features = step.draft(tokens, parents, states, context, part, embedding, impl="triton")
        lm_head_beams(features, head, torch.zeros(1, width), width, impl="triton")

    assert launches_of(draft) == 3 + blocks


@pytest.mark.parametrize("module", [accept_tree, commit_kv, pack_tree], ids=lambda m: m.__name__.rpartition(".")[2])  # fmt: skip
def test_op_without_weights_takes_one_launch(module):
    for case in module.CASES:
        assert launches_of(case.prepare(Inputs(random=False))) == 1, case.name
