"""Models from folders: whole ones are loaded, and what is wrong with others is one line."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specdec import load_target
from specdec.sources import models
from tiny import SHAPE, tiny_model


def refused(folder):
    """The one reason for which a model is not loaded."""
    with pytest.raises(ValueError, match="^model: ") as refusal:
        models.load_model(str(folder))
    (line,) = str(refusal.value).splitlines()
    return line


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "phi3", "tied"])
def test_model_folders_load_bit_identically(tmp_path, family):
    made = tiny_model("llama" if family == "tied" else family, dtype=torch.float32)
    if family == "tied":
        made = type(made)(type(made.config)(**SHAPE, tie_word_embeddings=True))
    made.save_pretrained(tmp_path)
    loaded = models.load_weights(str(tmp_path))
    assert all(
        torch.equal(weight, loaded.state_dict()[name]) for name, weight in made.state_dict().items()
    )
    assert not loaded.training


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": 96}, "expected lm_head.weight of shape [61, 96], as the config of "),
        ({"vocab_size": 70}, "expected lm_head.weight of shape [70, 48]"),
        ({"intermediate_size": 8}, ".mlp.down_proj.weight of shape [48, 8]"),
        ({"num_key_value_heads": 3}, ".self_attn.k_proj.weight of shape [24, 48]"),
        ({"num_hidden_layers": 4}, "got none for model.layers.3.input_layernorm.weight (and 8 more)"),
        ({"num_hidden_layers": 2}, "got model.layers.2.input_layernorm.weight as well (and 8 more)"),
        ({"attention_bias": True}, "got none for model.layers.0.self_attn.k_proj.bias"),
        ({"hidden_size": "wide"}, "wide"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"hidden_act": "magic"}, "KeyError: 'magic'"),
        ({"model_type": "magic"}, "model type `magic`"),
    ],
)  # fmt: skip
def test_weights_that_contradict_the_config_are_rejected(folder, change, reason):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert reason in refused(folder)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def damage_code(weights):
    weights.unlink()
    weights.with_name("pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}, protocol=2))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_code, "weights that need code to be run, or are damaged; no code was run"),
        (lambda weights: weights.unlink(), "no file named model.safetensors"),
        (lambda weights: weights.write_bytes(b""), "SafetensorError"),
        (lambda weights: weights.write_bytes(weights.read_bytes()[:-9]), "SafetensorError"),
        (lambda weights: weights.with_name("config.json").write_text("{"), "not a valid JSON file"),
        (lambda weights: weights.with_name("config.json").write_text("3"), "TypeError"),
        (lambda weights: weights.with_name("config.json").write_text("[" * 9999), "RecursionError"),
    ],
)
def test_damaged_folders_are_rejected_in_one_line(folder, monkeypatch, damage, reason):
    monkeypatch.chdir(folder)
    damage(folder / "model.safetensors")
    assert reason in refused(folder)
    assert not Path("ran").exists()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_folder_without_a_tokenizer_is_rejected_only_if_one_is_needed(tmp_path, family):
    tiny_model(family, dtype=torch.float32).save_pretrained(tmp_path)
    assert str(tmp_path) in refused(tmp_path)
    models.load_weights(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b/c", "x" * 300, "a\0b", "~/nowhere", "/dev/null", "."]
)
def test_invalid_model_names_are_rejected_in_one_line(name):
    refused(name)


def test_extra_value_head_is_ignored(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"v_head.weight": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"}
    )
    models.load_model(str(folder))


@pytest.mark.parametrize("load", [models.load_model, models.load_weights, load_target])
def test_revision_and_trust_remote_code_apply_only_to_external_models(folder, monkeypatch, load):
    for options in ({"revision": "v1"}, {"trust_remote_code": True}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name}: expected .* for the embedded smollm2"):
            load(models.DEFAULT_MODEL, **options)
    seen = []
    for auto in (models.AutoTokenizer, models.AutoModelForCausalLM):
        original = auto.from_pretrained

        def spy(source, original=original, **options):
            seen.append((options["revision"], options["trust_remote_code"]))
            return original(source, **options)

        monkeypatch.setattr(auto, "from_pretrained", spy)
    load(str(folder))
    assert set(seen) == {("main", False)}
    seen.clear()
    load(str(folder), revision="v1", trust_remote_code=True)
    assert set(seen) == {("v1", True)}


def test_code_in_a_model_folder_runs_only_with_trust_remote_code(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    path = folder / "config.json"
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"model_type": "own", "auto_map": own})
    )
    assert "trust_remote_code" in refused(folder)
    model, _ = models.load_model(str(folder), trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"


def test_error_names_the_unknown_model(tmp_path):
    for name in ("no/such-model", str(tmp_path)):
        with pytest.raises(ValueError, match=f"a hub id or a local folder, got '{name}'"):
            models.load_model(name)
