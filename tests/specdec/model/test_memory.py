"""Memory estimates, and one error line with advice when memory runs out."""

import copy
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from specdec.cli import main
from specdec.load import load_target
from specdec.model.cpu_linear import PrepackedLinear
from specdec.model.memory import Needs, enough_memory
from specdec.session import Session
from specdec.sources.models import load_model
from tiny import CONFIGS, letters, random_prompt, tiny_model

CPU = "[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3", "gemma3"])
@pytest.mark.parametrize("exact", [False, True])
def test_estimated_memory_equals_allocated_memory(family, exact):
    model = copy.deepcopy(tiny_model(family, dtype=torch.float32))
    with torch.device("meta"):
        beforehand = AutoModelForCausalLM.from_config(CONFIGS[family]())
    needs = Needs.of(beforehand, torch.float32, exact=exact)
    target = load_target(model, prepack=True, exact=exact)
    assert needs.weights == sum(p.nbytes for p in model.parameters())
    packed = {m.product for m in model.modules() if isinstance(m, PrepackedLinear)}
    sizes = [sum(layer.weight.nbytes for layer in product.layers) for product in packed]
    products = ("qkv", "output", "gate", "up", "down")
    sizes += [getattr(x, name).weight.numel() * 4 for x in target.lean.layers for name in products]
    assert needs.prepacked == sum(sizes)
    session = Session(target, "plain")
    session.generate([random_prompt(9, 1)], max_new_tokens=4)
    cache = session.cache
    assert cache.kv.nbytes == needs.cache * cache.slots


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(CPU),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=["cpu", "python", "cuda", "mps", "mmap"],
)
def test_every_out_of_memory_error_becomes_one_line(error):
    with pytest.raises(MemoryError, match="memory: expected 3 GB, got less; buy some"), \
            enough_memory(lambda: "3 GB", "buy some"):  # fmt: skip
        raise error


def test_other_errors_are_reraised_unchanged():
    for error in (RuntimeError("shapes differ"), OSError("no such file"), ValueError("memory")):
        with pytest.raises(type(error), match=str(error)), enough_memory(lambda: "3 GB", "none"):
            raise error


def fails(*args, **options):
    raise RuntimeError(CPU)


def test_cache_out_of_memory_error_names_tokens_and_sizes(monkeypatch):
    target = load_target(tiny_model("llama"))
    session = Session(target, "plain")
    monkeypatch.setattr(target, "prefill", fails)
    message = r"expected 0.00 GB for keys and values of 2 x \d+ tokens, beside 0.00 GB of weights"
    with pytest.raises(MemoryError, match=message):
        session.generate([random_prompt(4, 1)] * 2, max_new_tokens=4)
    monkeypatch.undo()
    assert len(session.generate([random_prompt(4, 1)], max_new_tokens=4).tokens[0]) == 4


def test_packing_out_of_memory_error_suggests_pack_false(monkeypatch):
    monkeypatch.setattr("specdec.model.cpu_linear.SharedProduct.prepack", fails)
    monkeypatch.setattr("specdec.model.cpu_linear.can_prepack", lambda dtype: True)
    model = copy.deepcopy(tiny_model("llama", dtype=torch.float32))
    with pytest.raises(MemoryError, match="for packed copies, .* prepack=False") as caught:
        load_target(model, prepack=True)
    assert not re.search(r"\n", str(caught.value))


def test_weights_out_of_memory_error_names_the_size(monkeypatch, tmp_path):
    model = tiny_model("llama", dtype=torch.float32)
    model.save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)
    monkeypatch.setattr("specdec.sources.models.AutoModelForCausalLM.from_pretrained", fails)
    needed = "expected 0.00 GB for weights in torch.float32 on cpu, got less; load a smaller model"
    with pytest.raises(MemoryError, match=needed):
        load_model(str(tmp_path))


def test_cli_reports_out_of_memory_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["specdec", "info"])
    monkeypatch.setattr(
        "specdec.sources.models.load_outline", enough_memory(lambda: "3 GB", "buy some")(fails)
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "specdec: memory: expected 3 GB, got less; buy some\n"
