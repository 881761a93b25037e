"""Everything the references ask of torch exists on Apple's MPS, checked without a Mac.

A whole decode runs on tensors that say they lie on MPS, and every ATen op that is reached on them is looked up in the table
that torch ships of what is implemented where; nothing may be float64, which MPS lacks. On a Mac, `--device mps` runs
test_devices.py there.
"""

from pathlib import Path

import pytest
import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from every_drafter import DRAFTERS, plain
from specdec.model.target import Target
from specdec.session import Session
from specdec_kernels.testing.absent_gpu import MPS, absent_gpu, is_composite
from tiny import random_prompt, tiny_model

TABLE = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
EVERYWHERE = {
    "CompositeImplicitAutograd",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
}
# How attention is called on a CPU and on MPS.
ON_MPS = {
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_flash_attention_for_cpu.default": "_scaled_dot_product_attention_math_for_mps",
}


@pytest.fixture(scope="module")
def backends():
    """Per op with its overload, the dispatch keys that implement it."""
    entries = yaml.load(TABLE.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    functions = {entry["func"].partition("(")[0]: entry for entry in entries}

    def keys(name):
        entry = functions[name]
        if (delegate := entry.get("structured_delegate")) is not None:
            return keys(delegate)
        table = entry.get("dispatch", {"CompositeImplicitAutograd": None})
        return {key.strip() for names in table for key in names.split(",")}

    return {name: keys(name) for name in functions}


class Recorder(TorchDispatchMode):
    """Remembers the ATen ops that ran on MPS and those that touched float64 there."""

    def __init__(self):
        super().__init__()
        self.names, self.float64 = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if is_composite(function):
            with self:
                return function.decompose(*args, **(kwargs or {}))
        out = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        if function._schema.overload_name:
            name += "." + function._schema.overload_name
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        there = [x for x in tensors if x.device.type == "mps"]
        if there:
            self.names.add(name)
        if any(x.dtype == torch.float64 for x in there):
            self.float64.add(name)
        return out


def recorded(family, make, dtype=torch.float32):
    prompts = [random_prompt(5, 0), random_prompt(9, 1) * 2]
    on_cpu = Target(tiny_model(family, dtype=dtype))
    expected = Session(on_cpu, make(on_cpu)).generate(prompts, max_new_tokens=8).tokens
    with absent_gpu(MPS), torch.inference_mode(False):
        target = Target(tiny_model.__wrapped__(family, dtype=dtype).to(MPS))
        drafter = make(target)
        with Recorder() as recorder:
            written = Session(target, drafter).generate(prompts, max_new_tokens=8).tokens
    assert written == expected
    return recorder


@pytest.mark.parametrize("make", DRAFTERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("family", ["llama-16", "mistral-16"])
def test_every_op_used_in_decoding_has_an_mps_kernel_and_no_float64(family, make, backends):
    recorder = recorded(family, make)
    assert len(recorder.names) > 30
    missing = {
        name for name in recorder.names
        if not backends[ON_MPS.get(name, name)] & {"MPS", *EVERYWHERE}
    }  # fmt: skip
    assert not missing
    assert not recorder.float64


def test_float64_use_is_detected():
    assert recorded("llama-16", plain, torch.float64).float64


def test_backend_table_lists_ops_missing_on_mps(backends):
    assert "MPS" in backends["mm"] and "MPS" in backends["topk"]
    assert not backends["_scaled_dot_product_flash_attention_for_cpu"] & {"MPS", *EVERYWHERE}
