"""Targets, drafters and files for tests of checkpoints."""

import json
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.drafters.kangaroo import KangarooConfig, KangarooDrafter
from specdec.drafters.medusa import MedusaConfig, MedusaDrafter, MedusaModel
from specdec.drafters.redrafter import ReDrafter, ReDrafterConfig, ReDrafterModel
from specdec.model.target import Target
from tiny import tiny_model

DATA = Path(__file__).parents[1] / "data"
APPLE, KANGAROO = DATA / "checkpoints" / "redrafter", DATA / "checkpoints" / "kangaroo"
OWN_FILES = {"config.json", "model.safetensors"}


@lru_cache
def target_of(hidden=32, vocabulary=97, seed=0, dtype=torch.float32):
    """A target for the authors' drafters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        initializer_range=0.3,
        max_position_embeddings=160,
    )
    return Target(LlamaForCausalLM(config).to(dtype).eval())


def tiny_target(family="llama", dtype=torch.float64):
    return Target(tiny_model(family, dtype=dtype))


def redrafter(target, *, vocabulary=None, seed=0, **shape):
    torch.manual_seed(seed)
    width = target.config.hidden_size
    config = ReDrafterConfig(width, **{"exit_dim": 2 * width} | shape)
    return ReDrafter(target, ReDrafterModel(config, target.config.vocab_size, vocabulary))


def kangaroo(target, *, vocabulary=None, seed=0, **shape):
    torch.manual_seed(seed)
    width = target.config.hidden_size
    shape = {"heads": 4, "kv_heads": 2, "head_dim": width // 4, "exit_layer": 1} | shape
    config = KangarooConfig(width, **shape)
    return KangarooDrafter(target, config, config.new_adapter(), vocabulary)


def medusa(target, *, vocabulary=None, seed=0, **shape):
    torch.manual_seed(seed)
    config = MedusaConfig(target.config.hidden_size, **shape)
    return MedusaDrafter(target, MedusaModel(config, target.config.vocab_size, vocabulary))


def weights_of(drafter):
    if not isinstance(drafter, KangarooDrafter):
        return drafter.model.state_dict()
    ids = drafter.head.id_map
    return drafter.adapter.state_dict() | ({} if ids is None else {"draft_vocabulary": ids})


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def apple_tensors(hidden=32, exit_dim=64, blocks=2, vocabulary=97, rnn=True):
    """A random drafter in Apple's layout."""
    generator = torch.Generator().manual_seed(blocks)

    def draw(*shape):
        return torch.randn(shape, generator=generator) * 0.2

    tensors = {f"lm_head.{blocks}.weight": draw(vocabulary, exit_dim)}
    for i in range(blocks):
        tensors[f"lm_head.{i}.linear.weight"] = draw(exit_dim, exit_dim)
        tensors[f"lm_head.{i}.linear.bias"] = draw(exit_dim)
    if exit_dim != 2 * hidden:
        tensors["input_proj.weight"] = draw(exit_dim, 2 * hidden)
        tensors["input_proj.bias"] = draw(exit_dim)
    if rnn:
        tensors |= {"rnn_u.weight": draw(hidden, hidden), "rnn_u.bias": draw(hidden)}
        tensors["rnn_w.weight"] = draw(hidden, hidden)
    return tensors


def apple_logits(tensors, context, embedded):
    """The authors' forward pass, written from its definition."""
    tensors = {name: x.double() for name, x in tensors.items()}
    state = torch.zeros_like(context)
    logits = []
    for e in embedded:
        if "rnn_w.weight" in tensors:
            u, b = tensors["rnn_u.weight"], tensors["rnn_u.bias"]
            state = F.silu(F.linear(e, tensors["rnn_w.weight"]) + F.linear(state, u, b))
        else:
            state = state + e
        x = torch.cat([context, state], -1)
        if "input_proj.weight" in tensors:
            x = F.linear(x, tensors["input_proj.weight"], tensors["input_proj.bias"])
        blocks = sum(name.endswith("linear.weight") for name in tensors)
        for i in range(blocks):
            layer = (tensors[f"lm_head.{i}.linear.{kind}"] for kind in ("weight", "bias"))
            x = x + F.silu(F.linear(x, *layer))
        logits.append(F.linear(x, tensors[f"lm_head.{blocks}.weight"]))
    return torch.stack(logits)


def folder_of(path, tensors, config=None):
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config or {}))
    return path


DRAFTERS = {
    "redrafter": lambda target: redrafter(target),
    "projected": lambda target: redrafter(target, exit_dim=40, residual_blocks=1, rnn=False),
    "lean": lambda target: redrafter(target, vocabulary=torch.arange(0, 61, 2)),
    "tied": lambda target: redrafter(
        target, tied_head=True, vocabulary=torch.arange(0, 61, 3), trained_length=3, draft_length=2
    ),
    "medusa": lambda target: medusa(target, tree=[[0], [1], [0, 2]], head_weights=[1, 1, 0, 0.5]),
    "target_medusa": lambda target: medusa(target, heads=2, blocks=2, output="target", min_prob=0),
    "lean_medusa": lambda target: medusa(
        target, output="projected", vocabulary=torch.arange(0, 61, 2), ranks=3, draft_length=2
    ),
    "kangaroo": lambda target: kangaroo(target, eta=0.3),
    "lean_kangaroo": lambda target: kangaroo(target, vocabulary=torch.arange(1, 61, 2), gamma=3),
}
