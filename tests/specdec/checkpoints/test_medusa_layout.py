"""Medusa's heads in the authors' layouts: loaded as they are, converted, and written back."""

import json
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from checkpoint_parts import DRAFTERS, assert_same, target_of, tiny_target
from specdec import cli
from specdec.checkpoints import Layout, export_drafter, import_drafter, save_drafter
from specdec.checkpoints.medusa_layout import RELEASED, medusa_tensors
from specdec.checkpoints.tensors import read_tensors
from specdec.drafters import load_drafter
from specdec.drafters.mixed import MixedDrafter
from specdec.session import Session
from tiny import library_greedy, random_prompt

HIDDEN, VOCABULARY = 32, 97


def heads(count=3, blocks=1, own=True, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(count)

    def draw(*shape):
        return torch.randn(shape, generator=generator) * 0.2

    tensors = {}
    for i in range(count):
        for j in range(blocks):
            tensors[f"{i}.{j}.linear.weight"] = draw(HIDDEN, HIDDEN)
            tensors[f"{i}.{j}.linear.bias"] = draw(HIDDEN)
        if own:
            tensors[f"{i}.{blocks}.weight"] = draw(vocabulary, HIDDEN)
    return tensors


def released(folder, tensors, **config):
    folder.mkdir()
    torch.save(tensors, folder / RELEASED)
    # Configurations in the wild claim other numbers.
    said = {"base_model_name_or_path": "x", "medusa_num_heads": 2, "medusa_num_layers": 1} | config
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def merged(folder, tensors):
    """Two shards of a model with the heads inside."""
    folder.mkdir()
    whole = {"model.embed_tokens.weight": torch.ones(VOCABULARY, HIDDEN)}
    whole |= {f"medusa_head.{name}": x for name, x in tensors.items()}
    places = {}
    for number, names in enumerate((sorted(whole)[::2], sorted(whole)[1::2])):
        save_file({name: whole[name] for name in names}, folder / f"part-{number}.safetensors")
        places |= dict.fromkeys(names, f"part-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    config = {"model_type": "llama", "medusa_num_heads": 3, "medusa_num_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


SHAPES = {
    "authors": {},
    "five-heads": {"count": 5},
    "two-blocks": {"blocks": 2},
    "residual-only": {"own": False},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_released_heads_round_trip_is_bit_identical(shape, tmp_path):
    tensors, target = heads(**SHAPES[shape]), target_of()
    source = released(tmp_path / "theirs", tensors)
    direct = load_drafter(source, target, min_prob=0)
    assert direct.config.heads == SHAPES[shape].get(
        "count", 3
    )  # the tensors', not the configuration's
    import_drafter(source, target).write(tmp_path / "ours")
    ours = load_drafter(tmp_path / "ours", target, min_prob=0)
    assert ours.config == direct.config
    assert_same(ours.model.state_dict(), direct.model.state_dict())
    export_drafter(tmp_path / "ours", Layout.medusa).write(tmp_path / "back")
    assert_same(torch.load(tmp_path / "back" / RELEASED, weights_only=True), tensors)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["medusa_num_heads"] == direct.config.heads
    assert config["medusa_num_layers"] == direct.config.blocks
    prompt = random_prompt(8, seed=1)
    written = Session(target, direct).generate([prompt], max_new_tokens=12).tokens[0]
    assert written == library_greedy(target.model, prompt, 12, eos=[1000])


@pytest.mark.parametrize("shape", SHAPES)
def test_heads_stored_with_a_model_equal_those_of_a_separate_file(shape, tmp_path):
    tensors, target = heads(**SHAPES[shape]), target_of()
    inside = merged(tmp_path / "merged", tensors)
    apart = released(tmp_path / "apart", tensors)
    weights = [load_drafter(f, target).model.state_dict() for f in (inside, apart)]
    assert_same(*weights)
    import_drafter(inside, target).write(tmp_path / "ours")
    assert_same(load_file(tmp_path / "ours" / "model.safetensors"), weights[0])


def test_safetensors_of_heads_are_read_too_and_share_a_tree(tmp_path):
    (tmp_path / "theirs").mkdir()
    save_file(heads(), tmp_path / "theirs" / "medusa_lm_head.safetensors")
    union = load_drafter(f"{tmp_path / 'theirs'}+lookup", target_of(), ranks=3)
    assert isinstance(union, MixedDrafter)
    assert union.drafters[0].config.ranks == 3 and union.calibration.rate > 1.5


def test_padded_vocabulary_is_cut(tmp_path):
    source = released(tmp_path / "theirs", heads(vocabulary=VOCABULARY + 127))
    conversion = import_drafter(source, target_of())
    moves = {move.source: move for move in conversion.moves}
    assert moves["0.1.weight"].action == "cut to 97 rows: the others are padding"
    assert load_drafter(source, target_of()).heads[0].linear.out_features == 97
    larger = released(tmp_path / "larger", heads(vocabulary=VOCABULARY + 128))
    message = r"0.1.weight: expected the target's 97 rows and fewer than 128 of padding, got 225"
    with pytest.raises(ValueError, match=message):
        load_drafter(larger, target_of())


def test_only_the_heads_of_a_merged_model_are_read(tmp_path, monkeypatch):
    source = merged(tmp_path / "merged", heads())
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = "part-2.safetensors"
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "part-2.safetensors").write_bytes(b"damaged, and without heads")
    assert_same(medusa_tensors(source), {f"medusa_head.{n}": x for n, x in heads().items()})
    read = []

    class Spy:
        def __init__(self, *args, **options):
            self.file = safe_open(*args, **options)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            self.file.__exit__(*error)

        def keys(self):
            return self.file.keys()

        def get_tensor(self, name):
            read.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr("specdec.checkpoints.tensors.safe_open", Spy)
    assert sorted(medusa_tensors(source)) == sorted(read)
    with pytest.raises(ValueError, match="safetensors header"):
        read_tensors(source)


def test_hub_id_of_released_heads_is_loaded_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    store = tmp_path / "cache" / "models--nobody--medusa-tiny"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text("0" * 40)
    (store / "snapshots").mkdir()
    source = released(store / "snapshots" / ("0" * 40), heads())
    drafter = load_drafter("nobody/medusa-tiny", target_of())
    assert drafter.name == "nobody/medusa-tiny"
    assert_same(drafter.model.state_dict(), load_drafter(source, target_of()).model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("1.0.linear.bias"), "expected tensor 1.0.linear.bias, got none"),
        (lambda t: t.pop("2.1.weight"), "expected tensor 2.1.weight, got none"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("1.")], r"expected tensor 1.0.linear.bias, got none \(and 2 more\)"),
        (lambda t: [t.pop(n) for n in list(t) if n.endswith("linear.weight")], r"expected tensor 0.0.linear.weight, got none"),
        (lambda t: t.update({"drafter.bias": torch.ones(2)}), "expected no tensor drafter.bias in a Medusa"),
        (lambda t: t.update({"medusa_head.0.0.linear.bias": torch.ones(32)}), "expected one of 0.0.linear.bias and medusa_head"),
        (lambda t: t.update({"3.0.linear.bias": torch.ones(32)}), r"expected tensor 3.0.linear.weight, got none"),
        (lambda t: t.update({"99.0.linear.bias": torch.ones(32)}), r"expected Medusa heads, got heads: expected 1 to 16, got 100"),
        (lambda t: t.update({"0.0.linear.bias": torch.ones(31)}), r"0.0.linear.bias of shape \[32\], got \[31\]"),
        (lambda t: t.update({"0.1.weight": torch.ones(97)}), r"expected a matrix 0.1.weight, got shape \[97\]"),
        (lambda t: t.update({"2.1.weight": torch.ones(96, 32)}), r"2.1.weight of shape \[97, 32\], got \[96, 32\]"),
        (lambda t: t.update({"0.0.linear.bias": torch.ones(32, dtype=torch.int64)}), "floating point tensor heads.0.blocks.0.bias"),
        (lambda t: t.clear(), "expected a matrix 0.0.linear.weight, got none"),
    ],
)  # fmt: skip
def test_error_names_tensors_that_do_not_fit(change, message, tmp_path):
    tensors = heads()
    change(tensors)
    source = released(tmp_path / "a", tensors)
    with pytest.raises(ValueError, match=message):
        load_drafter(source, target_of())
    with pytest.raises(ValueError, match=message):
        import_drafter(source, target_of()).write(tmp_path / "b")


def test_damaged_and_foreign_files_are_rejected(tmp_path):
    source = released(tmp_path / "theirs", heads())
    whole = (source / RELEASED).read_bytes()
    (source / RELEASED).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{RELEASED}: expected an undamaged file of tensors"):
        load_drafter(source, target_of())
    torch.save({"0.0.linear.weight": print}, source / RELEASED)
    with pytest.raises(ValueError, match="a file that wants code to be run"):
        load_drafter(source, target_of())
    (source / RELEASED).unlink()
    save_file({"model.norm.weight": torch.ones(3)}, source / "model.safetensors")
    with pytest.raises(ValueError, match=r"expected medusa_lm_head.pt or tensors medusa_head.\*"):
        load_drafter(source, target_of())


def test_heads_of_another_target_are_rejected(tmp_path):
    source = released(tmp_path / "theirs", heads())
    with pytest.raises(ValueError, match="hidden_size: expected the target's 48, got 32"):
        load_drafter(source, tiny_target())
    with pytest.raises(
        ValueError, match="0.1.weight: expected rows for the target's vocabulary of 113, got 97"
    ):
        load_drafter(source, target_of(vocabulary=113))
    with pytest.raises(ValueError, match="exit_layer: expected none for a Medusa, got 1"):
        import_drafter(source, target_of(), exit_layer=1)
    with pytest.raises(
        ValueError,
        match="beam_width: expected one of the settings tree, ranks, draft_length, min_prob",
    ):
        load_drafter(source, target_of(), beam_width=3)


@pytest.mark.parametrize(
    ("kind", "layout", "message"),
    [
        ("lean_medusa", "medusa", "output: expected own or target, which Medusa's layout holds, got projected"),
        ("medusa", "apple", "to: expected a layout for medusa, got apple"),
        ("redrafter", "medusa", "to: expected a layout for redrafter, got medusa"),
    ],
)  # fmt: skip
def test_export_rejects_what_the_layout_cannot_store(kind, layout, message, tmp_path):
    save_drafter(tmp_path, DRAFTERS[kind](tiny_target()))
    with pytest.raises(ValueError, match=message):
        export_drafter(tmp_path, Layout(layout))


def test_convert_command_reads_and_writes_heads(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("specdec.cli.loading.load_weights", lambda name, **_: target_of().model)

    def convert(*arguments):
        monkeypatch.setattr(sys, "argv", ["specdec", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        return capsys.readouterr().out

    source, ours = released(tmp_path / "theirs", heads()), tmp_path / "ours"
    monkeypatch.setenv("COLUMNS", "150")
    assert "heads.0.output.weight" in convert(source, ours, "--target", "any", "--dry-run")
    assert not ours.exists()
    convert(source, ours, "--target", "any")
    convert(ours, tmp_path / "back", "--to", "medusa")
    assert_same(torch.load(tmp_path / "back" / RELEASED, weights_only=True), heads())
