"""Kangaroo's checkpoints in the authors' layout, there and back, and torch files that are not to be trusted."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from checkpoint_parts import (
    APPLE,
    DATA,
    DRAFTERS,
    KANGAROO,
    OWN_FILES,
    assert_same,
    folder_of,
    kangaroo,
    target_of,
    tiny_target,
)
from specdec.checkpoints import (
    Layout,
    export_drafter,
    import_drafter,
    load_drafter_checkpoint,
    save_drafter,
)
from specdec.drafters.kangaroo import KangarooConfig
from specdec.session import Session
from tiny import library_greedy, random_prompt


def read_bin(folder):
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def test_kangaroo_layout_round_trip_is_bit_identical(tmp_path):
    target = target_of(64)
    import_drafter(KANGAROO, target, exit_layer=2).write(tmp_path / "ours")
    drafter = load_drafter_checkpoint(tmp_path / "ours", target)
    assert drafter.config == KangarooConfig(
        hidden_size=64, heads=8, kv_heads=2, head_dim=8, exit_layer=2, rms_norm_eps=1e-6, eta=0.6
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


def test_safetensors_with_legacy_inv_freq_are_read(tmp_path):
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
def test_error_names_tensors_that_do_not_fit_the_kangaroo_layout(change, config, message, tmp_path):
    tensors = {name: x for name, x in (read_bin(KANGAROO) | change).items() if x is not None}
    config = json.loads((KANGAROO / "config.json").read_text()) | config
    with pytest.raises(ValueError, match=message):
        import_drafter(folder_of(tmp_path / "a", tensors, config), target_of(64), exit_layer=1)


def test_kangaroo_of_another_hidden_size_is_rejected():
    with pytest.raises(ValueError, match="hidden_size: expected the target's 32, got 64"):
        import_drafter(KANGAROO, target_of(32), exit_layer=1)


@pytest.mark.parametrize("exit_layer", [None, 0, 3])
def test_kangaroo_import_requires_an_exit_layer(exit_layer):
    with pytest.raises(ValueError, match=f"exit_layer: expected 1 to 2.*got {exit_layer}"):
        import_drafter(KANGAROO, target_of(64), exit_layer=exit_layer)
    with pytest.raises(ValueError, match="exit_layer: expected none for a ReDrafter, got 1"):
        import_drafter(APPLE, target_of(), exit_layer=1)


def test_export_rejects_settings_the_kangaroo_code_ignores(tmp_path):
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
def test_pickle_that_would_execute_code_is_rejected_unexecuted(zipped, tmp_path):
    source = tmp_path / "theirs"
    shutil.copytree(KANGAROO, source)
    tensors = read_bin(KANGAROO) | {"norm.weight": Malicious(str(tmp_path / "ran"))}
    torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="tensors alone, got a file that wants code to be run"):
        import_drafter(source, target_of(64), exit_layer=1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0, 7, 100, 30000, -60])
def test_error_names_the_truncated_torch_file(kept, tmp_path):
    source = tmp_path / "theirs"
    shutil.copytree(KANGAROO, source)
    path = source / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="pytorch_model.bin: expected"):
        import_drafter(source, target_of(64), exit_layer=1)


def test_file_that_is_no_state_dict_is_rejected(tmp_path):
    for content in ([torch.ones(2)], {"epoch": 3}, {1: torch.ones(2)}):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match="expected tensors by name"):
            import_drafter(tmp_path, target_of())
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="expected model.safetensors or pytorch_model.bin"):
        import_drafter(tmp_path, target_of())
