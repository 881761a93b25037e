"""Whole rounds on the kernels, in the interpreter where there is no GPU: the text stays what the references write."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from every_drafter import (
    kangaroo,
    lean_kangaroo,
    lookup,
    mixed,
    plain,
    projected_redrafter,
    redrafter,
)  # fmt: skip
from specdec.session import Session
from specdec.target import Target
from specdec_kernels import dispatch
from specdec_kernels._ops import NAMESPACE
from tiny import random_prompt, tiny_model

NEW = 8


class Calls(TorchDispatchMode):
    """Counts our registered ops, and what makes the host wait for the device."""

    READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.ops, self.reads = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, _, name = function._schema.name.partition("::")
        if namespace == NAMESPACE:
            self.ops[name] += 1
        elif name in self.READS:
            self.reads[name] += 1
        return function(*args, **(kwargs or {}))


# What each drafter has to have run, beside what every round runs.
OPS = {
    plain: set(),
    lookup: {"pack_tree", "commit_kv"},
    redrafter: {"draft_step", "lm_head_beams", "pack_tree", "commit_kv"},
    projected_redrafter: {"draft_step", "lm_head_topk", "beam_step", "pack_tree", "commit_kv"},
    kangaroo: {"early_exit_step", "pack_tree", "commit_kv"},
    lean_kangaroo: {"early_exit_step", "pack_tree", "commit_kv"},
    mixed: {"draft_step", "lm_head_beams", "pack_tree", "commit_kv"},
}


def write(family, make, device):
    target = Target(tiny_model(family, dtype=torch.float32).to(device))
    with torch.inference_mode(False):
        drafter = make(target)
    prompts = [random_prompt(5, 0), random_prompt(11, 1) * 2]  # something to look up
    with Calls() as calls:
        tokens = Session(target, drafter).generate(prompts, max_new_tokens=NEW).tokens
    return tokens, calls


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "make"),
    [*(("llama-16", make) for make in OPS), ("mistral-16", lookup), ("qwen3-16", mixed)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_kernels_write_what_references_write(family, make, kernel_device, monkeypatch):
    monkeypatch.setattr(dispatch, "KERNEL_DEVICES", {"cuda", "cpu"})
    found, calls = write(family, make, kernel_device)
    monkeypatch.setattr(dispatch, "KERNEL_DEVICES", set())
    expected, none = write(family, make, kernel_device)
    assert found == expected
    assert not none.ops
    assert {"tree_attention", "accept_tree"} <= set(calls.ops)
    assert OPS[make] <= set(calls.ops)
