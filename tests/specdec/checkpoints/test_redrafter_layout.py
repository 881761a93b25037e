"""ReDrafter's checkpoints in the layout of Apple's code, there and back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_parts import (
    APPLE,
    DRAFTERS,
    KANGAROO,
    OWN_FILES,
    apple_logits,
    apple_tensors,
    assert_same,
    folder_of,
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
from specdec.session import Session
from tiny import library_greedy, random_prompt

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
def test_redrafter_layout_round_trip_is_bit_identical(shape, tmp_path):
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
def test_converted_redrafter_logits_equal_the_authors_formula(shape, tmp_path):
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


def test_authors_redrafter_file_converts_and_drafts(tmp_path):
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
    assert (config.top_rule, config.keep, config.min_prob, config.min_step_prob) == (50, "final", 0, 0)  # fmt: skip
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
def test_alternative_tensor_names_give_the_same_drafter(spelling, shape, tmp_path):
    target, tensors = target_of(), apple_tensors(**SHAPES[shape])
    import_drafter(folder_of(tmp_path / "apple", tensors), target).write(tmp_path / "a")
    spelled = {SPELLINGS[spelling](name): x for name, x in tensors.items()}
    import_drafter(folder_of(tmp_path / "other", spelled), target).write(tmp_path / "b")
    for name in OWN_FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_redrafter_is_extracted_from_a_sharded_model(tmp_path):
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


def test_vocabulary_padding_is_cut_and_reported_in_the_mapping(tmp_path):
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
def test_error_names_tensors_that_do_not_fit_the_redrafter_layout(change, message, tmp_path):
    tensors = apple_tensors()
    change(tensors)
    with pytest.raises(ValueError, match=message):
        import_drafter(folder_of(tmp_path / "a", tensors), target_of()).write(tmp_path / "b")
    assert not (tmp_path / "b" / "config.json").exists()


def test_drafter_of_another_hidden_size_is_rejected():
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
def test_export_rejects_what_the_redrafter_layout_cannot_store(kind, message, tmp_path):
    save_drafter(tmp_path, DRAFTERS[kind](tiny_target()))
    with pytest.raises(ValueError, match=message):
        export_drafter(tmp_path, Layout.apple)
