"""Few kernel variants are compiled for any sizes, and warm-up compiles all of them."""

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from compiling import compile_in_another_process
from specdec_kernels import DecodeShape, warmup
from specdec_kernels.gpu import INTERPRETER
from specdec_kernels.testing.absent_gpu import CUDA, absent_gpu
from specdec_kernels.testing.accesses import recorded_accesses, unavailable
from specdec_kernels.testing.aot import Key
from specdec_kernels.testing.cases import __path__ as cases
from specdec_kernels.testing.poison import filled_empty
from specdec_kernels.warmup import BeamDraftShape, Draws, ExitDraftShape, Heads, HeadShape

SCRIPT = Path(__file__).parents[1] / "support" / "kernel_keys.py"
OPS = {path.stem for path in Path(*cases).glob("[!_]*.py")}
DECODES = (
    "plain", "plain-copies", "lookup", "kangaroo", "redrafter", "redrafter-drawn", "mixed-processed",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(shared_folder, whole):
    """The keys of every sweep, decode and warm-up, found in a process that does not interpret, once for all workers."""
    results = shared_folder / "keys.json"
    with FileLock(results.with_suffix(".lock")):
        if not results.exists():
            run = compile_in_another_process(SCRIPT, results, *["--all"] * whole)
            assert results.exists(), run.stderr
    return {name: {Key(*key) for key in keys} for name, keys in json.loads(results.read_text()).items()}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(OPS))
def test_varying_sizes_recompile_only_for_other_tiles(op, found):
    assert found[op]
    for (kernel, constants, _), arguments in kinds_of(found[op]).items():
        assert len(arguments) == 1, f"{kernel} ({constants}): {arguments}"


def kinds_of(keys):
    """What is assumed of arguments, for each kernel, its constants and options."""
    kinds = defaultdict(set)
    for key in keys:
        kinds[key.kernel, key.constants, key.options].add(key.arguments)
    return kinds


@pytest.mark.slow
def test_kernel_specialized_on_a_size_is_detected(found):
    (arguments,) = kinds_of(found["spoiled"]).values()
    kinds = {re.search(r"nodes=([^,]*)", each)[1] for each in arguments}
    assert kinds == {"constexpr 1", "i32 D", "i32 "}


@pytest.mark.slow
@pytest.mark.parametrize("decode", DECODES)
def test_warmup_compiles_every_kernel_a_decode_launches(decode, found):
    launched, warm = found[f"decode {decode}"], found[f"warm-up {decode}"]
    missing = sorted(launched - warm)
    assert not missing, missing[0]
    assert len(warm) < 80
    # Nothing is compiled that is of no use: each kernel is one that decodes launch.
    assert {key.kernel for key in warm} == {
        kernel for name in DECODES for kernel in kernels(found[f"decode {name}"])
    } & kernels(warm)


def kernels(keys):
    return {key.kernel for key in keys}


@pytest.mark.slow
def test_every_decode_configuration_is_traced(found):
    assert {name for name in found if name.startswith("decode ")} == {f"decode {x}" for x in DECODES}  # fmt: skip


HEADS, HEAD = Heads(2, 1, 16), HeadShape(64, 300, bias=True, mapped=True)
SHAPES = {
    "plain": {},
    "copies": {"copies": True, "windows": (None, 9), "softcap": 2.0, "draws": Draws(0.5, 5, 0.9)},
    "beams": {
        "proposals": 9, "beams": BeamDraftShape(HEAD, None, 1, 3)
    },
    "ranked": {
        "proposals": 9, "draws": Draws(),
        "beams": BeamDraftShape(HeadShape(20, 300), 20, 2, 3, rnn=False, embed_scale=2.0, candidates=5, coupled=True),
    },
    "early-exit": {"proposals": 3, "early_exit": ExitDraftShape(HeadShape(32, 300), Heads(2, 2, 8))},
}  # fmt: skip


def small(**changes):
    sizes = {"layers": 2, "hidden_size": 32, "vocabulary": 300, "heads": HEADS, "rows": 2}
    return DecodeShape(
        torch.float32, **sizes, nodes=5, slots=600, prompt_chunk=7, **changes
    )  # fmt: skip


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_warmup_launches_stay_within_bounds(changes):
    told = []
    with (
        absent_gpu(CUDA, INTERPRETER),
        filled_empty(torch.Tensor.zero_),
        recorded_accesses() as launches,
    ):
        count = warmup(small(**changes), CUDA, progress=lambda *now: told.append(now))
    assert not [line for launch in launches for line in launch.outside]
    assert [done for done, _, _ in told] == list(range(count + 1))
    assert {total for _, total, _ in told} == {count}
    assert all(op for _, _, op in told[:-1]) and told[-1][2] == ""
    assert len(launches) >= count > 0


def test_warmup_rejects_a_cpu():
    with pytest.raises(ValueError, match="device: expected a CUDA device, got cpu"):
        warmup(small(), "cpu")
