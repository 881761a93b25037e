"""Checkpoints: to the bit in every direction, for one target alone, and nothing damaged or foreign gets in unnamed."""

import copy
import json
import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from specdec import cli
from specdec.checkpoints import (
    Layout,
    TargetFacts,
    conversion_table,
    export_drafter,
    import_drafter,
    load_drafter_checkpoint,
    read_description,
    save_checkpoint,
    save_drafter,
)
from specdec.drafters import LookupDrafter, MixedDrafter, check_drafter_name, load_drafter, names
from specdec.drafters.kangaroo import KangarooConfig, KangarooDrafter
from specdec.drafters.redrafter import ReDrafter, ReDrafterConfig, ReDrafterModel
from specdec.evaluate.methods import Runner, check_methods
from specdec.models import DEFAULT_MODEL, load_model
from specdec.packed_linear import pack_linears
from specdec.session import Session
from specdec.target import Target
from tiny import FAMILIES, VOCABULARY, library_greedy, random_prompt, tiny_model

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


def weights_of(drafter):
    if isinstance(drafter, ReDrafter):
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


# Fingerprints


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_itself_in_every_dtype_and_when_packed(family):
    facts = TargetFacts.of(tiny_target(family))
    for dtype in (torch.float32, torch.bfloat16):
        assert TargetFacts.of(tiny_target(family, dtype)) == facts
    packed = copy.deepcopy(tiny_model(family, dtype=torch.float32))
    pack_linears(packed)
    assert TargetFacts.of(Target(packed)) == facts
    facts.check(tiny_target(family, torch.float16))


def test_another_model_of_the_same_shape_has_another_fingerprint():
    facts = TargetFacts.of(tiny_target())
    other = Target(tiny_model("llama", seed=1))
    with pytest.raises(ValueError, match="target: expected the model .* fingerprint"):
        facts.check(other)
    for part in ("embed_tokens", "norm", "layers.1.mlp.down_proj"):
        model = copy.deepcopy(tiny_model("llama"))
        with torch.no_grad():
            model.get_submodule(f"model.{part}").weight.mul_(1.05)
        with pytest.raises(ValueError, match="fingerprint"):
            facts.check(Target(model))


@pytest.mark.model
def test_the_default_model_is_itself_in_float32_and_bfloat16():
    facts = [
        TargetFacts.of(Target(load_model(dtype=dtype)[0]))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert facts[0] == facts[1]
    assert (facts[0].hidden_size, facts[0].layers) == (576, 30)


# Our own format

DRAFTERS = {
    "redrafter": lambda target: redrafter(target),
    "projected": lambda target: redrafter(target, exit_dim=40, residual_blocks=1, rnn=False),
    "lean": lambda target: redrafter(target, vocabulary=torch.arange(0, 61, 2)),
    "tied": lambda target: redrafter(
        target, tied_head=True, vocabulary=torch.arange(0, 61, 3), trained_length=3, draft_length=2
    ),
    "kangaroo": lambda target: kangaroo(target, eta=0.3),
    "lean_kangaroo": lambda target: kangaroo(target, vocabulary=torch.arange(1, 61, 2), gamma=3),
}


@pytest.mark.parametrize("kind", DRAFTERS)
def test_what_is_saved_is_loaded(kind, tmp_path):
    target = tiny_target()
    drafter = DRAFTERS[kind](target)
    save_drafter(tmp_path / "new" / "folder", drafter)
    loaded = load_drafter_checkpoint(tmp_path / "new" / "folder", target)
    assert type(loaded) is type(drafter)
    assert loaded.config == drafter.config
    assert_same(weights_of(loaded), weights_of(drafter))
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == OWN_FILES
    model, prompt = target.model, random_prompt(9, seed=3)
    written = Session(target, loaded).generate([prompt], max_new_tokens=12).tokens[0]
    assert written == library_greedy(model, prompt, 12)


def test_weights_are_stored_in_the_dtype_asked_for_and_loaded_in_the_targets(tmp_path):
    target = tiny_target(dtype=torch.float32)
    drafter = redrafter(target, vocabulary=torch.arange(9))
    save_drafter(tmp_path, drafter, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["output.weight"].dtype == torch.bfloat16
    assert stored["draft_vocabulary"].dtype == torch.int64
    loaded = load_drafter_checkpoint(tmp_path, tiny_target(dtype=torch.bfloat16))
    assert_same(loaded.model.state_dict(), stored)
    loaded = load_drafter_checkpoint(tmp_path, target)
    assert loaded.model.output.weight.dtype == torch.float32


def test_how_to_draft_may_be_chosen_when_loading(tmp_path):
    target = tiny_target()
    save_drafter(tmp_path / "r", redrafter(target, trained_length=3, draft_length=3))
    save_drafter(tmp_path / "k", kangaroo(target))
    loaded = load_drafter_checkpoint(tmp_path / "r", target, beam_width=3, keep="final", least=0)
    assert (loaded.config.beam_width, loaded.config.keep) == (3, "final")
    assert loaded.model.config.beam_width == 8
    assert load_drafter_checkpoint(tmp_path / "k", target, eta=0.9, gamma=2).config.gamma == 2
    with pytest.warns(UserWarning, match="draft_length: expected at most the 3 tokens"):
        load_drafter_checkpoint(tmp_path / "r", target, draft_length=4)
    with pytest.raises(ValueError, match="exit_dim: expected one of the settings beam_width"):
        load_drafter_checkpoint(tmp_path / "r", target, exit_dim=4)
    with pytest.raises(ValueError, match="gamma: expected at least 1, got 0"):
        load_drafter_checkpoint(tmp_path / "k", target, gamma=0)


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (lambda: target_of(), "model.*hidden_size 48, vocab_size 61, .*got hidden_size 32, vocab_size 97"),
        (lambda: tiny_target("qwen2"), "model_type llama, .*got model_type qwen2"),
        (lambda: Target(tiny_model("llama", seed=1)), "with fingerprint [0-9a-f]{16}, got fingerprint"),
    ],
)  # fmt: skip
def test_another_target_is_refused(other, differs, tmp_path):
    save_drafter(tmp_path, redrafter(tiny_target()))
    with pytest.raises(ValueError, match=differs):
        load_drafter_checkpoint(tmp_path, other())


def test_another_number_of_layers_is_refused(tmp_path):
    save_drafter(tmp_path, kangaroo(tiny_target()))
    model = copy.deepcopy(tiny_model("llama"))
    del model.model.layers[2]
    with pytest.raises(ValueError, match="with layers 3, .*got layers 2"):
        load_drafter_checkpoint(tmp_path, Target(model))


def test_a_target_in_float16_is_known_by_its_shape(tmp_path):
    half = tiny_target(dtype=torch.float16)
    save_drafter(tmp_path, redrafter(tiny_target()))
    assert load_drafter_checkpoint(tmp_path, half).model.output.weight.dtype == torch.float16
    with pytest.raises(ValueError, match="target: expected float32, .*got float16"):
        save_drafter(tmp_path, redrafter(half))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    weights = {name: x.clone() for name, x in weights.items()}
    change(weights)
    save_file(weights, folder / "model.safetensors")


def flip(name):
    def change(weights):
        weights[name].view(torch.uint8).flatten()[0] ^= 1

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip("output.weight"), "tensor output.weight with SHA-256 .* altered"),
        (flip("draft_vocabulary"), "tensor draft_vocabulary with SHA-256 .* altered"),
        (lambda w: w.pop("step.blocks.0.bias"), "expected tensor step.blocks.0.bias, got none"),
        (lambda w: w.update(more=torch.ones(2)), "expected no tensor more, got one"),
        (
            lambda w: w.update({"output.weight": w["output.weight"][:-1].contiguous()}),
            "tensor output.weight with SHA-256 .* altered",
        ),
        (
            lambda w: w.update({"output.weight": w["output.weight"].view(torch.int64)}),
            "tensor output.weight with SHA-256 .* altered",
        ),
    ],
)
def test_altered_tensors_are_named(change, message, tmp_path):
    target = tiny_target()
    save_drafter(tmp_path, redrafter(target, vocabulary=torch.arange(9)))
    edit_weights(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_drafter_checkpoint(tmp_path, target)


def test_the_first_tensor_that_is_cut_off_is_named(tmp_path):
    target = tiny_target()
    save_drafter(tmp_path, kangaroo(target))
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:begin])
    places = {n: e["data_offsets"] for n, e in header.items() if n != "__metadata__"}
    for name, (start, end) in places.items():
        for kept in (start, end - 1):
            path.write_bytes(whole[: begin + kept])
            with pytest.raises(ValueError, match=f"expected all of tensor {name}, got a file that"):
                load_drafter_checkpoint(tmp_path, target)
    for kept in (0, 5, 40, begin - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="expected a safetensors header"):
            load_drafter_checkpoint(tmp_path, target)
    path.write_bytes(whole + b"more")
    with pytest.raises(ValueError, match="expected undamaged safetensors"):
        load_drafter_checkpoint(tmp_path, target)


def test_weights_of_another_shape_than_the_configuration_says_are_named(tmp_path):
    target = tiny_target()
    drafter = redrafter(target)
    weights, facts = drafter.model.state_dict(), TargetFacts.of(target)
    with pytest.raises(ValueError, match=r"output.weight of shape \[61, 96\], got \[60, 96\]"):
        wrong = weights | {"output.weight": weights["output.weight"][:60]}
        save_checkpoint(tmp_path / "a", drafter.config, wrong, facts)
    assert not (tmp_path / "a").exists()
    save_drafter(tmp_path, drafter)
    edit_config(tmp_path, drafter={"residual_blocks": 3})
    with pytest.raises(ValueError, match="expected tensor step.blocks.1.bias, got none"):
        load_drafter_checkpoint(tmp_path, target)
    with pytest.raises(ValueError, match="draft_vocabulary in int64, got torch.int32"):
        wrong = weights | {"draft_vocabulary": torch.arange(9, dtype=torch.int32)}
        save_checkpoint(tmp_path / "a", drafter.config, wrong, facts)


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "expected format 1, got 2"),
        ({"method": "medusa"}, "expected one of redrafter, kangaroo, got 'medusa'"),
        ({"drafter": {"exit_dim": "wide"}}, "expected a complete description"),
        ({"drafter": {"depth": 3}}, "expected a complete description, got .*depth"),
        ({"drafter": {"beam_width": 0}}, "beam_width: expected 1 to 64, got 0"),
        ({"target": {"planet": 3}}, "expected a complete description, got .*planet"),
        ({"sha256": None}, "expected a complete description"),
        ({"sha256": {"more": "00"}}, "expected tensor more, got none"),
    ],
)
def test_damaged_configurations_are_named(changes, message, tmp_path):
    target = tiny_target()
    save_drafter(tmp_path, redrafter(target))
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_drafter_checkpoint(tmp_path, target)


def test_a_folder_without_our_checkpoint_is_named(tmp_path):
    target = target_of()
    with pytest.raises(ValueError, match="config.json: expected a readable JSON file"):
        load_drafter_checkpoint(tmp_path, target)
    (tmp_path / "config.json").write_text("{ half")
    with pytest.raises(ValueError, match="config.json: expected a readable JSON file"):
        load_drafter_checkpoint(tmp_path, target)
    with pytest.raises(ValueError, match="specdec's format.*specdec convert"):
        load_drafter_checkpoint(APPLE, target)


def test_a_save_that_fails_leaves_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    target = tiny_target()
    first = redrafter(target)
    save_drafter(tmp_path, first)
    monkeypatch.setattr(
        "specdec.checkpoints.format.save_file",
        lambda tensors, path, metadata: (path.write_text("half"), 1 / 0),
    )
    with pytest.raises(ZeroDivisionError):
        save_drafter(tmp_path, redrafter(target, seed=1))
    assert {path.name for path in tmp_path.iterdir()} == OWN_FILES
    assert_same(weights_of(load_drafter_checkpoint(tmp_path, target)), weights_of(first))


# Apple's layout

SHAPES = {
    "authors": {},
    "no-rnn": {"rnn": False},
    "projected": {"exit_dim": 40},
    "projected-no-rnn-no-blocks": {"exit_dim": 40, "rnn": False, "blocks": 0},
    "one-block": {"blocks": 1},
    "no-blocks": {"blocks": 0},
    "five-blocks": {"blocks": 5},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_apples_layout_goes_to_ours_and_back_to_the_bit(shape, tmp_path):
    tensors = apple_tensors(**SHAPES[shape])
    source = folder_of(tmp_path / "theirs", tensors, {"num_draft_layers": 99, "rnn": "no"})
    target = target_of()
    import_drafter(source, target).write(tmp_path / "ours")
    export_drafter(tmp_path / "ours", Layout.apple).write(tmp_path / "back")
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), tensors)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["num_draft_layers"] == SHAPES[shape].get("blocks", 2)
    import_drafter(tmp_path / "back", target).write(tmp_path / "again")
    for name in OWN_FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_converted_weights_compute_what_the_authors_code_computes(shape, tmp_path):
    tensors = apple_tensors(**SHAPES[shape])
    target = target_of(dtype=torch.float64)
    import_drafter(folder_of(tmp_path / "theirs", tensors), target).write(tmp_path / "ours")
    drafter = load_drafter_checkpoint(tmp_path / "ours", target)
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(7, 32, generator=generator, dtype=torch.float64)
    embedded = torch.randn(4, 7, 32, generator=generator, dtype=torch.float64)
    logits = drafter.head.logits(drafter.model(embedded, context))
    expected = apple_logits(tensors, context, embedded)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


def test_the_authors_own_file_drafts_as_the_authors_do(tmp_path):
    target = target_of()
    import_drafter(APPLE, target).write(tmp_path / "ours")
    drafter = load_drafter_checkpoint(tmp_path / "ours", target)
    config = drafter.config
    assert (config.hidden_size, config.exit_dim, config.residual_blocks, config.rnn) == (
        32,
        64,
        2,
        True,
    )
    assert (config.top_rule, config.keep, config.least, config.least_step) == (50, "final", 0, 0)  # fmt: skip
    export_drafter(tmp_path / "ours", Layout.apple).write(tmp_path / "back")
    back, theirs = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "back", APPLE)
    )
    assert back == {name: x for name, x in theirs.items() if name != "transformers_version"}
    for source in (APPLE, tmp_path / "back"):
        assert_same(load_file(source / "model.safetensors"), load_file(APPLE / "model.safetensors"))
    prompt = random_prompt(8, seed=1)
    written = Session(target, drafter).generate([prompt], max_new_tokens=10).tokens[0]
    assert written == library_greedy(target.model, prompt, 10, eos=[1000])


SPELLINGS = {
    "plural": lambda name: name.replace("lm_head.", "lm_heads.").replace("proj.", "projs."),
    "medusa": lambda name: name.replace("lm_head.", "0."),
    "modelopt": lambda name: f"drafter.{name}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("shape", ["authors", "projected"])
def test_other_spellings_are_the_same_drafter(spelling, shape, tmp_path):
    target, tensors = target_of(), apple_tensors(**SHAPES[shape])
    import_drafter(folder_of(tmp_path / "apple", tensors), target).write(tmp_path / "a")
    spelled = {SPELLINGS[spelling](name): x for name, x in tensors.items()}
    import_drafter(folder_of(tmp_path / "other", spelled), target).write(tmp_path / "b")
    for name in OWN_FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_drafter_is_taken_out_of_a_sharded_model(tmp_path):
    target, tensors = target_of(), apple_tensors()
    shards = {
        "model-00001-of-00002.safetensors": {"model.embed_tokens.weight": torch.ones(97, 32)},
        "model-00002-of-00002.safetensors": {},
    }
    for i, (name, x) in enumerate(sorted(tensors.items())):
        shards[f"model-0000{1 + i % 2}-of-00002.safetensors"][f"drafter.{name}"] = x
    for file, part in shards.items():
        save_file(part, tmp_path / file)
    places = {name: file for file, part in shards.items() for name in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / "config.json").write_text(json.dumps({"redrafter": {"num_draft_layers": 7}}))
    import_drafter(tmp_path, target).write(tmp_path / "ours")
    export_drafter(tmp_path / "ours", Layout.apple).write(tmp_path / "back")
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), tensors)
    index.write_text(json.dumps({"weight_map": places | {"drafter.more": "../secret"}}))
    with pytest.raises(ValueError, match="weight_map from tensors to files beside it"):
        import_drafter(tmp_path, target)
    index.write_text(json.dumps({"weight_map": places | {"drafter.more": next(iter(shards))}}))
    with pytest.raises(ValueError, match="expected tensor drafter.more, got none"):
        import_drafter(tmp_path, target)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="expected a file .*model-00002-of-00002.safetensors"):
        import_drafter(tmp_path, target)


def test_padding_of_the_vocabulary_is_cut_and_the_mapping_says_so(tmp_path):
    target, tensors = (
        target_of(),
        apple_tensors(vocabulary=128) | {"emb_norm.weight": torch.ones(32)},
    )
    conversion = import_drafter(folder_of(tmp_path / "theirs", tensors), target)
    actions = {move.source: move for move in conversion.moves}
    assert actions["lm_head.2.weight"].action == "cut to 97 rows: the others are padding"
    assert actions["lm_head.2.weight"].shape == (97, 64)
    assert actions["emb_norm.weight"].name is None
    conversion.write(tmp_path / "ours")
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert torch.equal(found["output.weight"], tensors["lm_head.2.weight"][:97])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("rnn_u.bias"), "expected tensor rnn_u.bias, got none"),
        (lambda t: t.pop("rnn_w.weight"), "expected tensor rnn_w.weight, got none"),
        (lambda t: t.pop("lm_head.2.weight"), "expected tensor lm_head.2.weight behind 2 residual blocks"),
        (lambda t: t.pop("lm_head.0.linear.weight"), "expected tensor lm_head.1.weight behind 1"),
        (lambda t: t.pop("lm_head.0.linear.bias"), "expected tensor lm_head.0.linear.bias, got none"),
        (lambda t: t.update({"medusa.weight": torch.ones(2)}), "expected no tensor medusa.weight in a ReDrafter"),
        (lambda t: t.update({"0.1.linear.bias": torch.ones(64)}), "expected one of 0.1.linear.bias and lm_head.1"),
        (lambda t: t.update({"rnn_u.bias": torch.ones(31)}), r"rnn_u.bias of shape \[32\], got \[31\]"),
        (lambda t: t.update({"lm_head.2.weight": torch.ones(97)}), "expected a matrix lm_head.2.weight"),
        (lambda t: t.update({"lm_head.2.weight": torch.ones(97, 63)}), r"expected tensor input_proj.bias, got none \(and 1 more\)"),
        (lambda t: t.update({"input_proj.weight": torch.ones(64, 64)}), "expected no tensor input_proj.weight"),
        (lambda t: t.update({"lm_head.2.weight": torch.ones(96, 64)}), "lm_head.2.weight: expected rows for .* 97, got 96"),
        (lambda t: t.update({"rnn_u.bias": torch.ones(32, dtype=torch.int64)}), "floating point tensor step.recurrent_state.bias"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_apples_layout_are_named(change, message, tmp_path):
    tensors = apple_tensors()
    change(tensors)
    with pytest.raises(ValueError, match=message):
        import_drafter(folder_of(tmp_path / "a", tensors), target_of()).write(tmp_path / "b")
    assert not (tmp_path / "b" / "config.json").exists()


def test_a_drafter_of_another_width_is_refused():
    with pytest.raises(ValueError, match="hidden_size: expected the target's 48, got 32"):
        import_drafter(APPLE, tiny_target())
    with pytest.raises(ValueError, match="hidden_size: expected the target's 32, got 64"):
        import_drafter(KANGAROO, target_of(), exit_layer=1)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tied", "tied_head: expected a drafter with a head of its own"),
        ("lean", "draft_vocabulary: expected none, .*got one of 31 tokens"),
        ("kangaroo", "to: expected a layout for kangaroo, got apple"),
    ],
)
def test_what_apples_layout_cannot_hold_is_refused(kind, message, tmp_path):
    save_drafter(tmp_path, DRAFTERS[kind](tiny_target()))
    with pytest.raises(ValueError, match=message):
        export_drafter(tmp_path, Layout.apple)


# Kangaroo's layout


def read_bin(folder):
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def test_kangaroos_layout_goes_to_ours_and_back_to_the_bit(tmp_path):
    target = target_of(64)
    import_drafter(KANGAROO, target, exit_layer=2).write(tmp_path / "ours")
    drafter = load_drafter_checkpoint(tmp_path / "ours", target)
    assert drafter.config == KangarooConfig(
        hidden_size=64, heads=8, kv_heads=2, head_dim=8, exit_layer=2, rms_norm_eps=1e-6
    )
    same = load_file(DATA / "kangaroo" / "gqa.safetensors")
    adapter = "adapter."
    own = {name.removeprefix(adapter): x for name, x in same.items() if name.startswith(adapter)}
    assert_same(load_file(tmp_path / "ours" / "model.safetensors"), own)
    export_drafter(tmp_path / "ours", Layout.kangaroo).write(tmp_path / "back")
    assert_same(read_bin(tmp_path / "back"), read_bin(KANGAROO))
    import_drafter(tmp_path / "back", target, exit_layer=2).write(tmp_path / "again")
    for name in OWN_FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    prompt = random_prompt(8, seed=1)
    written = Session(target, drafter).generate([prompt], max_new_tokens=10).tokens[0]
    assert written == library_greedy(target.model, prompt, 10, eos=[1000])


def test_safetensors_and_old_rotary_frequencies_are_read(tmp_path):
    tensors = read_bin(KANGAROO)
    extra = {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    config = json.loads((KANGAROO / "config.json").read_text())
    source = folder_of(tmp_path / "theirs", tensors | extra, config)
    conversion = import_drafter(source, target_of(64), exit_layer=1)
    assert [move.source for move in conversion.moves if move.name is None] == list(extra)


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"norm.weight": None}, {}, "expected tensor norm.weight, got none"),
        ({"norm.bias": torch.ones(64)}, {}, "expected no tensor norm.bias, got one"),
        ({"layers.1.input_layernorm.weight": torch.ones(64)}, {}, "an adapter of one layer, got 2"),
        ({}, {"num_key_value_heads": 4}, r"k_proj.weight of shape \[32, 64\], got \[16, 64\]"),
        ({}, {"num_key_value_heads": None}, r"k_proj.weight of shape \[64, 64\], got \[16, 64\]"),
        ({}, {"head_dim": 4}, r"q_proj.weight of shape \[32, 64\], got \[64, 64\]"),
        ({}, {"num_attention_heads": None}, "expected a Llama configuration with hidden_size and"),
        ({}, {"num_attention_heads": 0}, "expected a Llama configuration with hidden_size and"),
    ],
)
def test_tensors_that_do_not_fit_kangaroos_layout_are_named(change, config, message, tmp_path):
    tensors = {name: x for name, x in (read_bin(KANGAROO) | change).items() if x is not None}
    config = json.loads((KANGAROO / "config.json").read_text()) | config
    with pytest.raises(ValueError, match=message):
        import_drafter(folder_of(tmp_path / "a", tensors, config), target_of(64), exit_layer=1)


@pytest.mark.parametrize("exit_layer", [None, 0, 3])
def test_kangaroo_needs_an_exit_layer(exit_layer):
    with pytest.raises(ValueError, match=f"exit_layer: expected 1 to 2.*got {exit_layer}"):
        import_drafter(KANGAROO, target_of(64), exit_layer=exit_layer)
    with pytest.raises(ValueError, match="exit_layer: expected none for a ReDrafter, got 1"):
        import_drafter(APPLE, target_of(), exit_layer=1)


def test_what_kangaroos_code_would_compute_otherwise_is_refused(tmp_path):
    target = tiny_target()
    for name, shape in (("rope_theta", {"rope_theta": 5e5}), ("head_dim", {"head_dim": 6})):
        save_drafter(tmp_path, kangaroo(target, **shape))
        with pytest.raises(ValueError, match=f"{name}: expected"):
            export_drafter(tmp_path, Layout.kangaroo)
    save_drafter(tmp_path, DRAFTERS["lean_kangaroo"](target))
    left_out = [m.source for m in export_drafter(tmp_path, Layout.kangaroo).moves if not m.name]
    assert left_out == ["draft_vocabulary"]


# Files that are not what they should be


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_wants_to_run_code_is_refused_and_not_run(zipped, tmp_path):
    source = tmp_path / "theirs"
    shutil.copytree(KANGAROO, source)
    tensors = read_bin(KANGAROO) | {"norm.weight": Malicious(str(tmp_path / "ran"))}
    torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="tensors alone, got a file that wants code to be run"):
        import_drafter(source, target_of(64), exit_layer=1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0, 7, 100, 30000, -60])
def test_a_damaged_file_of_torchs_is_named(kept, tmp_path):
    source = tmp_path / "theirs"
    shutil.copytree(KANGAROO, source)
    path = source / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="pytorch_model.bin: expected"):
        import_drafter(source, target_of(64), exit_layer=1)


def test_a_file_of_something_else_than_tensors_by_name_is_refused(tmp_path):
    for content in ([torch.ones(2)], {"epoch": 3}, {1: torch.ones(2)}):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match="expected tensors by name"):
            import_drafter(tmp_path, target_of())
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="expected model.safetensors or pytorch_model.bin"):
        import_drafter(tmp_path, target_of())


# Names


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Drafters as if they were shipped, for a tiny model."""
    folder, target = tmp_path / "shipped", tiny_target()
    save_drafter(folder / "redrafter", redrafter(target))
    save_drafter(folder / "kangaroo", kangaroo(target))
    monkeypatch.setattr(names, "SHIPPED_FOLDER", folder)
    return target


def test_shipped_drafters_are_found_by_name(shipped):
    assert isinstance(load_drafter("redrafter", shipped), ReDrafter)
    assert load_drafter("kangaroo", shipped, gamma=2).config.gamma == 2
    for name in ("mixed", "redrafter+lookup"):
        mixed = load_drafter(name, shipped, beam_width=2)
        assert [type(drafter) for drafter in mixed.drafters] == [ReDrafter, LookupDrafter]
        assert mixed.drafters[0].config.beam_width == 2
    with pytest.raises(ValueError, match="beam_width: expected no settings for lookup"):
        load_drafter("lookup", shipped, beam_width=2)
    with pytest.raises(ValueError, match="drafter: expected kangaroo alone"):
        check_drafter_name("kangaroo+lookup")


def test_a_shipped_drafter_says_which_model_it_is_for(shipped):
    with pytest.raises(
        ValueError, match=f"redrafter is shipped for {DEFAULT_MODEL}; train one .*specdec train red"
    ):
        load_drafter("redrafter", target_of())


def test_an_installation_without_shipped_drafters_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "SHIPPED_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="expected kangaroo in .*specdec train kangaroo"):
        check_drafter_name("kangaroo")
    with pytest.raises(ValueError, match="expected redrafter in"):
        check_drafter_name("mixed")


def test_a_folder_is_a_name(tmp_path, monkeypatch):
    target = tiny_target()
    save_drafter(tmp_path / "a+b", redrafter(target))
    save_drafter(tmp_path / "c", redrafter(target))
    save_drafter(tmp_path / "k", kangaroo(target))
    assert isinstance(load_drafter(str(tmp_path / "a+b"), target), ReDrafter)
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_drafter("c+lookup", target), MixedDrafter)
    check_methods(["plain", "lookup", "c+lookup"])
    with pytest.raises(ValueError, match="drafter: expected k alone"):
        check_drafter_name("k+lookup")
    with pytest.raises(ValueError, match="drafter: expected one of none, lookup, redrafter"):
        check_drafter_name("nowhere")
    with pytest.raises(ValueError, match="specdec's format"):
        check_drafter_name(str(APPLE))


def test_a_benchmark_loads_a_drafter_once(tmp_path, monkeypatch):
    target = tiny_target()
    save_drafter(tmp_path, redrafter(target))
    runner = Runner(target, None, max_nodes=8, eos=[VOCABULARY + 1])
    first = runner.write(str(tmp_path), random_prompt(5, seed=0), 6)
    shutil.rmtree(tmp_path)
    assert runner.write(str(tmp_path), random_prompt(5, seed=0), 6).tokens == first.tokens


# The command


@pytest.fixture
def run(capsys, monkeypatch):
    def command(*arguments, code=0):
        monkeypatch.setenv("COLUMNS", "150")
        monkeypatch.setattr(sys, "argv", ["specdec", *map(str, arguments)])
        cli.messages.file = None  # whatever pytest captures with now
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert (stopped.value.code or 0) == code
        return capsys.readouterr()

    return command


@pytest.fixture
def target_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "specdec.checkpoints.command.load_model",
        lambda name, dtype: (target_of(int(name)).model, None),
    )


@pytest.mark.usefixtures("target_folder")
def test_the_command_shows_the_mapping_and_converts(run, tmp_path):
    ours, back = tmp_path / "ours", tmp_path / "back"
    out = run("convert", APPLE, ours, "--target", 32, "--dry-run").out
    for fact in ("lm_head.0.linear.weight", "step.state_in.weight", "right columns", "97 x 64"):
        assert fact in out
    assert not ours.exists()
    run("convert", APPLE, ours, "--target", 32)
    assert read_description(ours).method == "redrafter"
    assert "joined" in run("convert", ours, back, "--to", "apple").out
    assert_same(load_file(back / "model.safetensors"), load_file(APPLE / "model.safetensors"))
    assert (
        "expected a new or an empty folder"
        in run("convert", APPLE, ours, "--target", 32, code=2).err
    )
    run("convert", KANGAROO, tmp_path / "k", "--target", 64, "--exit-layer", 2)
    assert read_description(tmp_path / "k").drafter.exit_layer == 2
    for arguments, message in (
        ((KANGAROO, tmp_path / "n", "--target", 64), "exit_layer: expected 1 to 2"),
        ((ours, tmp_path / "n", "--target", 32), "source: expected the layout of another project"),
        ((ours, tmp_path / "n", "--to", "kangaroo"), "to: expected a layout for redrafter"),
        ((tmp_path / "no", tmp_path / "n", "--target", 32), "expected model.safetensors or"),
    ):
        (line,) = run("convert", *arguments, code=2).err.strip().splitlines()
        assert line.startswith("specdec: ")
        assert message in line
    assert not (tmp_path / "n").exists()


def test_the_table_has_a_row_per_move(tmp_path):
    conversion = import_drafter(APPLE, target_of())
    assert conversion_table(conversion).row_count == len(conversion.moves) == 9
