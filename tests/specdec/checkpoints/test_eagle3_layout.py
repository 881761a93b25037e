"""EAGLE-3 in the authors' layout and in speculators': to ours and back to the bit, loaded as they are, and errors that name the tensor."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import every_drafter
from eagle3_heads import CASES, GOLDENS, assert_same, configure, rewrite, target_of
from specdec import cli
from specdec.checkpoints import (
    Layout,
    export_drafter,
    import_drafter,
    load_drafter_checkpoint,
    load_folder,
    method_in,
    read_description,
    save_drafter,
)
from specdec.checkpoints.eagle3_layout import read_eagle3
from specdec.checkpoints.target_facts import TargetFacts
from specdec.checkpoints.tensors import read_tensors, write_safetensors
from specdec.drafters import check_drafter_name, load_drafter
from specdec.drafters.eagle3 import Eagle3Config
from specdec.model.target import Target
from specdec.session import Session
from tiny import tiny_model


@pytest.fixture(scope="module")
def targets():
    return {case: target_of(case) for case in CASES}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", [Layout.eagle3, Layout.speculators])
def test_head_round_trip_is_bit_identical(targets, case, layout, tmp_path):
    target, source = targets[case], GOLDENS / case / "draft"
    imported = import_drafter(source, target)
    imported.write(tmp_path / "own")
    assert {move.source for move in imported.moves} == read_tensors(source).keys()
    drafter = load_drafter_checkpoint(tmp_path / "own", target)
    assert_same(drafter, load_folder(source, target))
    export_drafter(tmp_path / "own", layout).write(tmp_path / "theirs")
    assert method_in(tmp_path / "theirs") == "eagle3"
    again = load_folder(tmp_path / "theirs", target)
    assert_same(again, drafter)
    assert again.listener.layers == drafter.listener.layers == (2, 3, 4)
    assert again.config.rope_theta == drafter.config.rope_theta
    import_drafter(tmp_path / "theirs", target).write(tmp_path / "again")
    descriptions = [read_description(tmp_path / name).sha256 for name in ("own", "again")]
    assert descriptions[0] == descriptions[1]
    theirs, original = read_tensors(tmp_path / "theirs"), read_tensors(source)
    if layout == Layout.eagle3:
        extra = {"d2t", "t2d"} if drafter.head.id_map is None else set()
        assert theirs.keys() == original.keys() - extra
        assert all(torch.equal(theirs[name], original[name]) for name in theirs)


def test_published_head_loads_and_drafts(targets, head):
    target = targets["gqa_d2t"]
    assert method_in(head) == "eagle3"
    check_drafter_name(str(head))
    drafter = load_drafter(head, target, depth=3, width=4)
    assert drafter.name == str(head) and drafter.config.depth == 3
    golden = json.loads((GOLDENS / "gqa_d2t" / "golden.json").read_text())
    final, prompt = golden["final"], golden["prompt"]
    written = Session(target, drafter).generate([prompt], max_new_tokens=len(final) - len(prompt))
    assert prompt + written.tokens[0] == final
    assert written.metrics.tokens_per_round > 2
    union = load_drafter(f"lookup+{head}", target)
    assert union.listener is not None
    with pytest.raises(ValueError, match="beams: expected one of the settings depth, width"):
        load_drafter(head, target, beams=3)


def test_rows_of_a_head_are_sorted_by_id(targets, head):
    before = load_folder(head, targets["gqa_d2t"])

    def shuffle(tensors):
        order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
        ids = tensors["d2t"] + torch.arange(96)
        tensors["d2t"] = ids[order] - torch.arange(96)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][order]

    rewrite(head, shuffle)
    assert_same(load_folder(head, targets["gqa_d2t"]), before)


def test_speculators_entries_are_read(targets, tmp_path):
    target = targets["gqa_d2t"]
    import_drafter(GOLDENS / "gqa_d2t" / "draft", target).write(tmp_path / "own")
    export_drafter(tmp_path / "own", Layout.speculators).write(tmp_path / "theirs")
    folder = tmp_path / "theirs"
    tensors = read_tensors(folder)
    # As newer releases write it: the embedding, what training kept, the layers by name.
    tensors["embed_tokens.weight"] = target.embedding.detach().bfloat16()
    tensors["verifier_norm.weight"] = torch.ones(64)
    write_safetensors(folder / "model.safetensors", tensors)
    read = json.loads((folder / "config.json").read_text())
    inner = read["transformer_layer_config"]
    inner["rope_parameters"] = {"rope_type": "default", "rope_theta": inner.pop("rope_theta") * 5}
    configure(folder, norm_before_residual=True, eagle_aux_hidden_state_layer_ids=[1, 3, 5, 7],
              transformer_layer_config=inner)  # fmt: skip
    drafter = load_folder(folder, target)
    assert drafter.config.norm_residual and drafter.config.rope_theta == 50000.0
    assert drafter.listener.layers == (1, 3, 5)
    save_drafter(tmp_path / "saved", drafter)
    with pytest.raises(ValueError, match=r"layers: expected \[2, 3, 4\], the authors' choice, got \[1, 3, 5\]"):  # fmt: skip
        export_drafter(tmp_path / "saved", Layout.eagle3)
    export_drafter(tmp_path / "saved", Layout.speculators).write(tmp_path / "back")
    assert load_folder(tmp_path / "back", target).config == drafter.config
    tensors["embed_tokens.weight"] += 1
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=r"expected the target's embedding .* in tensor embed_tokens.weight"):  # fmt: skip
        load_folder(folder, target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.float16])
def test_copy_of_the_embedding_is_recognised_in_every_dtype(targets, head, dtype, kept):
    facts = TargetFacts.of(targets["gqa_d2t"])
    generator = torch.Generator().manual_seed(0)
    scale = 10.0 ** -torch.rand(240, 1, generator=generator).mul(9)  # down to what float16 cannot
    embedding = torch.randn(240, 64, generator=generator) * scale
    tensors, theirs = read_tensors(head), json.loads((head / "config.json").read_text())

    def read(copy):
        whole = tensors | {"embed_tokens.weight": copy.to(kept)}
        return read_eagle3(head, whole, theirs, facts, embedding=embedding.to(dtype))

    moves = {move.source: move.action for move in read(embedding)[1].moves}
    assert moves["embed_tokens.weight"] == "left out: the target's own"
    for another in (embedding * 1.02, embedding.roll(1, 0), embedding[:, :32]):
        with pytest.raises(ValueError, match="expected the target's embedding"):
            read(another)


def test_scaled_rotary_embeddings_equal_transformers(targets, head, tmp_path):
    target = targets["gqa_d2t"]
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    configure(head, rope_scaling={"rope_type": "llama3", **scaling}, rope_theta=500.0)
    drafter = load_folder(head, target)
    assert drafter.config.rope_scaling == scaling
    rope = {"rope_type": "llama3", "rope_theta": 500.0, **scaling}
    llama = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=16, rope_parameters=rope)
    place = torch.tensor([[0, 1, 17, 300]])
    ours = drafter.model._angles(torch.zeros(1), place)
    for a, b in zip(ours, LlamaRotaryEmbedding(llama)(torch.zeros(1), place), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    save_drafter(tmp_path / "own", drafter)
    assert load_drafter_checkpoint(tmp_path / "own", target).config == drafter.config
    export_drafter(tmp_path / "own", Layout.speculators).write(tmp_path / "theirs")
    assert load_folder(tmp_path / "theirs", target).config.rope_scaling == scaling
    with pytest.raises(ValueError, match="rope_scaling: expected None"):
        export_drafter(tmp_path / "own", Layout.eagle3)
    with pytest.raises(ValueError, match="rope_scaling: expected factor"):
        Eagle3Config(8, 8, 2, 2, 4, rope_scaling={"factor": 2.0})


def test_convert_command_reads_and_writes_heads(targets, head, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "specdec.cli.loading.load_weights", lambda name, **options: targets[name].model
    )
    monkeypatch.setenv("COLUMNS", "150")

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["specdec", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert (stopped.value.code or 0) == code
        return capsys.readouterr()

    own, back = tmp_path / "own", tmp_path / "back"
    out = run(head, own, "--target", "gqa_d2t", "--dry-run").out
    for fact in (
        "midlayer.hidden_norm.weight",
        "hidden_norm.weight",
        "ids in place of offsets",
        "64 x 192",
    ):
        assert fact in out
    assert not own.exists()
    run(head, own, "--target", "gqa_d2t", "--layers", "1,3,5")
    assert read_description(own).drafter.layers == (1, 3, 5)
    assert "as membership" in run(own, back, "--to", "speculators").out
    assert method_in(back) == "eagle3"
    for arguments, message in (
        ((head, back, "--layers", "x"), "layers: expected numbers by commas, got 'x'"),
        ((head, tmp_path / "n", "--target", "gqa_d2t", "--layers", "1,3,7"), "layers: expected 1 to 6 of the target's 7"),
        ((head, tmp_path / "n", "--target", "gqa_d2t", "--layers", "1,3"), "expected tensor fc.weight of shape"),
        ((head, tmp_path / "n", "--target", "gqa_d2t", "--exit-layer", "1"), "exit_layer: expected none for an EAGLE-3"),
        ((own, tmp_path / "n", "--to", "eagle3"), "layers: expected [2, 3, 4], the authors' choice"),
    ):  # fmt: skip
        assert message in run(*arguments, code=2).err
    assert not (tmp_path / "n").exists()


def change(name, tensor):
    return lambda tensors: tensors.__setitem__(name, tensor)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("midlayer.hidden_norm.weight"), "expected tensor midlayer.hidden_norm.weight, got none"),
        (change("fc.bias", torch.zeros(64)), "expected no tensor fc.bias, got one"),
        (change("fc.weight", torch.zeros(64, 128)), r"expected tensor fc.weight of shape \[64, 192\], got \[64, 128\]"),
        (change("lm_head.weight", torch.zeros(95, 64)), r"expected tensor lm_head.weight of shape \[96, 64\]"),
        (lambda t: t.pop("d2t"), "expected tensor d2t for a draft vocabulary of 96 of 240 tokens, got none"),
        (change("d2t", torch.zeros(96)), "expected tensor d2t of 96 integers, got torch.float32"),
        (change("d2t", torch.full((96,), 200)), "expected tensor d2t to name 96 of the target's 240 tokens once each"),
        (change("d2t", -torch.arange(96)), "expected tensor d2t to name 96 of the target's 240 tokens once each"),
        (change("t2d", torch.zeros(100, dtype=torch.bool)), r"expected tensor t2d of the target's 240 tokens, got shape \[100\]"),
        (change("t2d", torch.zeros(240, dtype=torch.bool)), "expected tensor t2d to name the tokens of d2t, got others"),
    ],
)  # fmt: skip
def test_error_names_the_tensor(targets, head, damage, message):
    rewrite(head, damage)
    for load in (load_folder, import_drafter):
        with pytest.raises(ValueError, match=message):
            load(head, targets["gqa_d2t"])


def test_truncated_files_and_files_with_code_are_rejected(targets, head):
    path = head / "pytorch_model.bin"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="expected an undamaged file of tensors"):
        load_folder(head, targets["gqa_d2t"])
    torch.save({"midlayer.x": test_error_names_the_tensor}, path)
    with pytest.raises(ValueError, match="wants code to be run"):
        load_folder(head, targets["gqa_d2t"])
    path.unlink()
    shutil.copyfile(GOLDENS / "mha_fullvocab" / "draft" / "model.safetensors", head / "model.safetensors")  # fmt: skip
    whole = (head / "model.safetensors").read_bytes()
    (head / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"expected all of tensor \S+, got a file that ends"):
        load_folder(head, targets["gqa_d2t"])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"hidden_size": 32}, "hidden_size: expected the target's 64, got 32"),
        ({"vocab_size": 128256}, "vocab_size: expected the target's vocabulary of 240, got 128256"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "expected rotations of rope_type default or llama3 in a drafter, got 'linear'"),
        ({"num_attention_heads": 3}, "expected the configuration of a drafter, got kv_heads: expected a divisor of 3 heads"),
        ({"speculators_model_type": "dflash"}, "expected a head of eagle3, got one of dflash"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2, 9]}, r"layers: expected 1 to 6 of the target's 7 layers, got \[1, 2, 9\]"),
    ],
)  # fmt: skip
def test_head_of_another_target_is_rejected(targets, head, entries, message):
    configure(head, **entries)
    with pytest.raises(ValueError, match=message):
        load_folder(head, targets["gqa_d2t"])


def test_head_of_a_small_target_requires_the_layers_option(head):
    target = Target(tiny_model("llama"))
    with pytest.raises(ValueError, match="hidden_size: expected the target's 48, got 64"):
        load_folder(head, target)
    with pytest.raises(ValueError, match="layers: expected none for another drafter than EAGLE-3"):
        kangaroo = Path(__file__).parents[2] / "data" / "checkpoints" / "kangaroo"
        import_drafter(kangaroo, target, layers=(1,))


def test_layouts_require_three_layers(tmp_path):
    target = Target(tiny_model("llama"))
    save_drafter(tmp_path / "own", every_drafter.eagle3(target))
    load_drafter_checkpoint(tmp_path / "own", target)
    for layout in (Layout.eagle3, Layout.speculators):
        with pytest.raises(ValueError, match="layers: expected 3, as the layout has, got 2"):
            export_drafter(tmp_path / "own", layout)
    with pytest.raises(ValueError, match="to: expected a layout for eagle3, got apple"):
        export_drafter(tmp_path / "own", Layout.apple)


def test_hub_id_is_loaded_from_the_cache(targets, head, tmp_path, monkeypatch):
    # As the hub's client keeps it.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    store = tmp_path / "cache" / "models--nobody--EAGLE3-tiny"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text("0" * 40)
    shutil.copytree(head, store / "snapshots" / ("0" * 40))
    check_drafter_name("nobody/EAGLE3-tiny+lookup")
    drafter = load_drafter("nobody/EAGLE3-tiny", targets["gqa_d2t"])
    assert drafter.name == "nobody/EAGLE3-tiny"
    assert_same(drafter, load_folder(head, targets["gqa_d2t"]))
    with pytest.raises(ValueError, match="a hub id that can be fetched, got 'nobody/nothing'"):
        check_drafter_name("nobody/nothing")
    with pytest.raises(ValueError, match="drafter: expected one of plain"):
        check_drafter_name("no/such/folder")
