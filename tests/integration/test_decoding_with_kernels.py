"""Decoding with kernels (in the interpreter without a GPU) equals decoding with references."""

import pytest
import torch

from every_drafter import (
    eagle3,
    kangaroo,
    lean_eagle3,
    lean_kangaroo,
    lookup,
    medusa,
    mixed,
    mixed_medusa,
    own_model,
    plain,
    projected_redrafter,
    redrafter,
    training_free,
)  # fmt: skip
from specdec.model.target import Target
from specdec.session import Session
from specdec_kernels import dispatch
from specdec_kernels.testing.calls import counted_calls
from tiny import random_prompt, tiny_model

NEW = 5

# What each drafter has to have run, beside what every round runs.
OPS = {
    plain: set(),
    lookup: {"pack_tree", "commit_kv"},
    redrafter: {"draft_step", "lm_head_beams", "pack_tree", "commit_kv"},
    projected_redrafter: {"draft_step", "lm_head_topk", "beam_step", "pack_tree", "commit_kv"},
    kangaroo: {"early_exit_step", "pack_tree", "commit_kv"},
    lean_kangaroo: {"early_exit_step", "pack_tree", "commit_kv"},
    eagle3: {"lm_head_topk", "pack_tree", "commit_kv"},
    lean_eagle3: {"lm_head_topk", "pack_tree", "commit_kv"},
    own_model: {"beam_step", "pack_tree", "commit_kv"},
    training_free: {"pack_tree", "commit_kv"},
    mixed: {"draft_step", "lm_head_beams", "pack_tree", "commit_kv"},
    medusa: {"lm_head_topk", "pack_tree", "commit_kv"},
    mixed_medusa: {"lm_head_topk", "draft_step", "pack_tree", "commit_kv"},
}


def write(family, make, device, **options):
    target = Target(tiny_model(family, dtype=torch.float32).to(device))
    with torch.inference_mode(False):
        drafter = make(target)
    prompts = [random_prompt(5, 0), random_prompt(11, 1) * 2]  # something to look up
    with counted_calls() as calls:
        session = Session(target, drafter, max_nodes=16)
        tokens = session.generate(prompts, max_new_tokens=NEW, **options).tokens
    return tokens, set(calls.counts.ops)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "make"),
    [*(("llama-16", make) for make in OPS), ("mistral-16", lookup), ("qwen3-16", mixed)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_decoding_with_kernels_equals_decoding_with_references(
    family, make, kernel_device, monkeypatch
):
    monkeypatch.setattr(dispatch, "KERNEL_DEVICES", {"cuda", "cpu"})
    found, ops = write(family, make, kernel_device)
    monkeypatch.setattr(dispatch, "KERNEL_DEVICES", set())
    expected, none = write(family, make, kernel_device)
    assert found == expected
    assert not none
    assert {"tree_attention", "accept_tree"} <= ops
    assert OPS[make] <= ops


@pytest.mark.slow
@pytest.mark.parametrize("make", [lookup, kangaroo], ids=lambda make: make.__name__)
def test_waiting_rows_get_equal_tokens_with_kernels(make, kernel_device, monkeypatch):
    monkeypatch.setattr(dispatch, "KERNEL_DEVICES", set())
    expected, _ = write("llama-16", make, kernel_device, copies=2)
    monkeypatch.setattr(dispatch, "KERNEL_DEVICES", {"cuda", "cpu"})
    found, ops = write("llama-16", make, kernel_device, copies=2, rows_at_once=3)
    assert found == expected
    assert "tree_attention" in ops
