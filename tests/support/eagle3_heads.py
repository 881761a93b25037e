"""EAGLE-3 heads that the authors' code trained on tiny models, and changes to copies of them."""

import functools
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from specdec.checkpoints.tensors import read_tensors, write_pickle
from specdec.model.target import Target

GOLDENS = Path(__file__).parents[1] / "data" / "eagle3"
CASES = sorted(folder.name for folder in GOLDENS.iterdir())


@functools.cache
def target_of(case):
    """The model of 7 layers that a head was trained for."""
    with torch.inference_mode(False):
        base = GOLDENS / case / "base"
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return Target(model.eval())


def rewrite(folder, change):
    """Change a head's tensors in place."""
    tensors = read_tensors(folder)
    change(tensors)
    write_pickle(folder / "pytorch_model.bin", tensors)


def configure(folder, **entries):
    """Change entries of a head's `config.json`; None deletes one."""
    path = folder / "config.json"
    changed = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({name: x for name, x in changed.items() if x is not None}))


def weights(drafter):
    ids = drafter.head.id_map
    return drafter.model.state_dict() | {"ids": torch.empty(0) if ids is None else ids}


def assert_same(drafter, other):
    """Compare the weights of two drafters bit for bit."""
    ours, theirs = weights(drafter), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
