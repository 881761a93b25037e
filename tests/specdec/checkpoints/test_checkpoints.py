"""Checkpoints: to the bit in every direction, for one target alone, and nothing damaged or foreign gets in unnamed."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_parts import (
    APPLE,
    DRAFTERS,
    OWN_FILES,
    assert_same,
    kangaroo,
    redrafter,
    target_of,
    tiny_target,
    weights_of,
)
from specdec.checkpoints import (
    TargetFacts,
    load_drafter_checkpoint,
    save_checkpoint,
    save_drafter,
)
from specdec.model.cpu_linear import prepack_linears
from specdec.model.target import Target
from specdec.session import Session
from specdec.sources.models import load_model
from tiny import FAMILIES, library_greedy, random_prompt, tiny_model

# Fingerprints


@pytest.mark.parametrize("family", FAMILIES)
def test_fingerprint_is_the_same_in_every_dtype_and_when_packed(family):
    facts = TargetFacts.of(tiny_target(family))
    for dtype in (torch.float32, torch.bfloat16):
        assert TargetFacts.of(tiny_target(family, dtype)) == facts
    packed = copy.deepcopy(tiny_model(family, dtype=torch.float32))
    prepack_linears(packed)
    assert TargetFacts.of(Target(packed)) == facts
    facts.check(tiny_target(family, torch.float16))


def test_other_weights_of_the_same_shape_have_another_fingerprint():
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
def test_default_model_has_one_fingerprint_in_float32_and_bfloat16():
    facts = [
        TargetFacts.of(Target(load_model(dtype=dtype)[0]))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert facts[0] == facts[1]
    assert (facts[0].hidden_size, facts[0].layers) == (576, 30)


# Our own format


@pytest.mark.parametrize("kind", DRAFTERS)
def test_saved_drafter_loads_bit_identically(kind, tmp_path):
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


def test_weights_are_stored_in_the_given_dtype_and_loaded_in_the_targets(tmp_path):
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


def test_drafting_settings_may_be_overridden_when_loading(tmp_path):
    target = tiny_target()
    save_drafter(tmp_path / "r", redrafter(target, trained_length=3, draft_length=3))
    save_drafter(tmp_path / "k", kangaroo(target))
    loaded = load_drafter_checkpoint(tmp_path / "r", target, beam_width=3, keep="final", min_prob=0)
    assert (loaded.config.beam_width, loaded.config.keep) == (3, "final")
    assert loaded.model.config.beam_width is None
    assert load_drafter_checkpoint(tmp_path / "k", target, eta=0.9, gamma=2).config.gamma == 2
    with pytest.warns(UserWarning, match="draft_length: expected at most the 3 tokens"):
        load_drafter_checkpoint(tmp_path / "r", target, draft_length=4)
    with pytest.raises(ValueError, match="exit_dim: expected one of the settings beam_width"):
        load_drafter_checkpoint(tmp_path / "r", target, exit_dim=4)
    with pytest.raises(ValueError, match="gamma: expected at least 1, got 0"):
        load_drafter_checkpoint(tmp_path / "k", target, gamma=0)


def test_deprecated_field_names_are_read_from_files_and_warned_about_in_calls(tmp_path):
    target = tiny_target()
    save_drafter(tmp_path, redrafter(target, min_prob=0.25, min_step_prob=0.5))
    path = tmp_path / "config.json"
    new = path.read_text()
    path.write_text(new.replace('"min_prob"', '"least"').replace('"min_step_prob"', '"least_step"'))
    assert path.read_text() != new
    found = load_drafter_checkpoint(tmp_path, target).config
    assert (found.min_prob, found.min_step_prob) == (0.25, 0.5)
    with pytest.warns(DeprecationWarning, match="least: expected its new name, min_prob"):
        found = load_drafter_checkpoint(tmp_path, target, least=0.125).config
    assert (found.min_prob, found.min_step_prob) == (0.125, 0.5)


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (lambda: target_of(), "model.*hidden_size 48, vocab_size 61, .*got hidden_size 32, vocab_size 97"),
        (lambda: tiny_target("qwen2"), "model_type llama, .*got model_type qwen2"),
        (lambda: Target(tiny_model("llama", seed=1)), "with fingerprint [0-9a-f]{16}, got fingerprint"),
    ],
)  # fmt: skip
def test_checkpoint_for_another_target_is_rejected(other, differs, tmp_path):
    save_drafter(tmp_path, redrafter(tiny_target()))
    with pytest.raises(ValueError, match=differs):
        load_drafter_checkpoint(tmp_path, other())


def test_target_with_another_number_of_layers_is_rejected(tmp_path):
    save_drafter(tmp_path, kangaroo(tiny_target()))
    model = copy.deepcopy(tiny_model("llama"))
    del model.model.layers[2]
    with pytest.raises(ValueError, match="with layers 3, .*got layers 2"):
        load_drafter_checkpoint(tmp_path, Target(model))


def test_float16_target_is_matched_by_shape_and_rejected_on_save(tmp_path):
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
def test_error_names_altered_tensors(change, message, tmp_path):
    target = tiny_target()
    save_drafter(tmp_path, redrafter(target, vocabulary=torch.arange(9)))
    edit_weights(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_drafter_checkpoint(tmp_path, target)


def test_error_names_the_first_truncated_tensor(tmp_path):
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


def test_error_names_weights_whose_shape_contradicts_the_configuration(tmp_path):
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
        ({"method": "hydra"}, "expected one of redrafter, medusa, kangaroo, eagle3, got 'hydra'"),
        ({"drafter": {"exit_dim": "wide"}}, "expected a complete description"),
        ({"drafter": {"depth": 3}}, "expected a complete description, got .*depth"),
        ({"drafter": {"beam_width": 0}}, "beam_width: expected 1 to 64, got 0"),
        ({"target": {"planet": 3}}, "expected a complete description, got .*planet"),
        ({"sha256": None}, "expected a complete description"),
        ({"sha256": {"more": "00"}}, "expected tensor more, got none"),
    ],
)
def test_error_names_the_damaged_configuration_field(changes, message, tmp_path):
    target = tiny_target()
    save_drafter(tmp_path, redrafter(target))
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_drafter_checkpoint(tmp_path, target)


def test_folder_without_a_specdec_checkpoint_is_rejected(tmp_path):
    target = target_of()
    with pytest.raises(ValueError, match="config.json: expected a readable JSON file"):
        load_drafter_checkpoint(tmp_path, target)
    (tmp_path / "config.json").write_text("{ half")
    with pytest.raises(ValueError, match="config.json: expected a readable JSON file"):
        load_drafter_checkpoint(tmp_path, target)
    with pytest.raises(ValueError, match="specdec's format.*specdec convert"):
        load_drafter_checkpoint(APPLE, target)


def test_failed_save_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    target = tiny_target()
    first = redrafter(target)
    save_drafter(tmp_path, first)
    monkeypatch.setattr(
        "specdec.checkpoints.tensors.save_file",
        lambda tensors, path, metadata: (path.write_text("half"), 1 / 0),
    )
    with pytest.raises(ZeroDivisionError):
        save_drafter(tmp_path, redrafter(target, seed=1))
    assert {path.name for path in tmp_path.iterdir()} == OWN_FILES
    assert_same(weights_of(load_drafter_checkpoint(tmp_path, target)), weights_of(first))
