"""Lean layers: layers that run as transformers', changes after loading, and memory."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from families import tiny_of
from specdec.load import load_target
from specdec.model.cpu_linear import PrepackedLinear
from specdec.session import Session
from specdec_kernels.decoder_layer import CpuDecoderLayer, can_prepack
from tiny import library_greedy, random_prompt, tiny_model

PROMPT = random_prompt(12, 5)


def fresh(family="llama", seed=11, dtype=torch.float32):
    return copy.deepcopy(tiny_model(family, seed=seed, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("named", [True, False], ids=["by-name", "by-trying"])
def test_layers_that_depend_on_large_positions_run_as_transformers_layers(
    named, dtype, monkeypatch
):
    """Ministral 3 scales queries by their positions, from a length on that no probe at the beginning sees."""
    if not named:
        monkeypatch.setattr("specdec.model.layer_parts._check_config", lambda config: None)
    parameters = tiny_of("ministral3").config.rope_parameters
    changes = {"original_max_position_embeddings": 32, "llama_4_scaling_beta": 0.5}
    model = tiny_of("ministral3", rope_parameters={**parameters, **changes}).to(dtype)
    target = load_target(model)
    assert not any(target.lean.layers)
    reason = "it scales queries" if named else "it differs from the library's by"
    assert all(r.startswith(reason) for r in target.lean.reasons)
    if dtype != torch.float64:
        return
    prompt = random_prompt(30, 4)
    written = Session(target, "lookup").generate([prompt], max_new_tokens=40).tokens[0]
    assert written == library_greedy(model, prompt, 40)


def test_layers_with_clipping_run_as_transformers_layers():
    model = fresh()
    model.model.layers[0].self_attn.config.clip_qkv = 3.0
    target = load_target(model)
    assert set(target.lean.reasons) == {"it clips queries, keys and values"}


def test_unsupported_layers_run_as_transformers_layers(monkeypatch):
    def fails(self, hidden, *others):
        raise RuntimeError("expected another dtype\nand more")

    monkeypatch.setattr(CpuDecoderLayer, "__call__", fails)
    target = load_target(fresh())
    assert set(target.lean.reasons) == {"ours fails: expected another dtype"}
    text = Session(target, "plain").generate([PROMPT], max_new_tokens=6).tokens[0]
    assert text == library_greedy(fresh(), PROMPT, 6)


def test_number_of_kept_buffers_is_bounded():
    target = load_target(fresh())
    prompts = [random_prompt(length, length) for length in (3, 30, 90, 5)]
    for _ in range(2):
        for count in (1, 2, 4):
            Session(target, "lookup").generate(prompts[:count], max_new_tokens=6)
    sizes = [rows * nodes for rows, nodes, *_ in target.lean._buffers]
    assert sum(sizes) <= 4096


@pytest.mark.skipif(not can_prepack(torch.float32), reason="torch has no such operators here")
def test_hooks_see_only_generated_tokens_and_leave_no_copies():
    model = fresh()
    target = load_target(model, prepack=True)
    session, seen = Session(target, "plain"), []
    layers = model.model.layers
    hooks = [x.register_forward_hook(lambda m, given, out: seen.append(out.shape)) for x in layers]
    session.generate([PROMPT], max_new_tokens=2)
    assert seen == [(1, len(PROMPT), 48)] * 3 + [(1, 1, 48)] * 3
    assert sum(isinstance(m, PrepackedLinear) for m in model.modules()) > 1
    for hook in hooks:
        hook.remove()
    session.generate([PROMPT[::-1]], max_new_tokens=2)
    assert all(target.lean.layers)
    assert [n for n, m in model.named_modules() if isinstance(m, PrepackedLinear)] == ["lm_head"]


def test_transformers_hooks_and_global_hooks_are_distinguished():
    model = fresh()
    model(torch.tensor([PROMPT]), output_hidden_states=True, output_attentions=True)
    assert all(load_target(model).lean.layers)
    hook = nn.modules.module.register_module_forward_hook(lambda module, given, out: None)
    try:
        assert not any(load_target(fresh(seed=12)).lean.layers)
    finally:
        hook.remove()


def test_a_failed_try_is_repeated_before_the_next_text(monkeypatch):
    model = fresh()
    target = load_target(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(2)
    with monkeypatch.context() as broken:

        def fails(*given):
            raise RuntimeError("can't allocate memory")

        broken.setattr("specdec.model.lean_layers.take_apart", fails)
        with pytest.raises(MemoryError):
            Session(target, "plain").generate([PROMPT], max_new_tokens=2)
    assert not any(target.lean.layers)
    text = Session(target, "plain").generate([PROMPT], max_new_tokens=6).tokens[0]
    assert all(target.lean.layers) and text == library_greedy(model, PROMPT, 6)


def test_caches_are_freed_without_the_garbage_collector():
    session = Session(load_target(fresh()), "lookup")
    gc.collect()
    gc.disable()
    try:
        session.generate([PROMPT], max_new_tokens=4)
        cache = weakref.ref(session.cache)
        session.generate([PROMPT, PROMPT], max_new_tokens=4)
        assert cache() is None
    finally:
        gc.enable()
