"""Names of drafters, and the command that converts them."""

import shutil
import sys

import pytest
from safetensors.torch import load_file

from checkpoint_parts import (
    APPLE,
    KANGAROO,
    assert_same,
    kangaroo,
    redrafter,
    target_of,
    tiny_target,
)
from specdec import cli
from specdec.checkpoints import (
    conversion_table,
    import_drafter,
    read_description,
    save_drafter,
)
from specdec.drafters import LookupDrafter, MixedDrafter, check_drafter_name, load_drafter, names
from specdec.drafters.redrafter import ReDrafter
from specdec.evaluate.method_names import check_methods
from specdec.evaluate.methods import Runner
from specdec.sources.embedded import DEFAULT_MODEL
from tiny import VOCABULARY, random_prompt

# Names


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Drafters as if they were shipped, for a tiny model."""
    folder, target = tmp_path / "shipped", tiny_target()
    save_drafter(folder / "redrafter", redrafter(target))
    save_drafter(folder / "kangaroo", kangaroo(target))
    monkeypatch.setattr(names, "SHIPPED_FOLDER", folder)
    return target


def test_shipped_drafters_load_by_name(shipped):
    assert isinstance(load_drafter("redrafter", shipped), ReDrafter)
    assert load_drafter("kangaroo", shipped, gamma=2).config.gamma == 2
    for name in ("mixed", "redrafter+lookup"):
        mixed = load_drafter(name, shipped, beam_width=2)
        assert [type(drafter) for drafter in mixed.drafters] == [ReDrafter, LookupDrafter]
        assert mixed.drafters[0].config.beam_width == 2
    with pytest.raises(ValueError, match="beam_width: expected one of the settings of lookup"):
        load_drafter("lookup", shipped, beam_width=2)
    with pytest.raises(ValueError, match="drafter: expected kangaroo alone"):
        check_drafter_name("kangaroo+lookup")


def test_error_names_the_model_a_shipped_drafter_is_for(shipped):
    with pytest.raises(
        ValueError, match=f"redrafter is shipped for {DEFAULT_MODEL}; train one .*specdec train red"
    ):
        load_drafter("redrafter", target_of())


def test_missing_shipped_drafters_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "SHIPPED_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="expected kangaroo in .*specdec train kangaroo"):
        check_drafter_name("kangaroo")
    with pytest.raises(ValueError, match="expected redrafter in"):
        check_drafter_name("mixed")


def test_drafter_name_may_be_a_folder(tmp_path, monkeypatch):
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
    with pytest.raises(ValueError, match="drafter: expected one of plain, lookup, suffix"):
        check_drafter_name("nowhere")
    with pytest.raises(ValueError, match="specdec's format"):
        check_drafter_name(str(APPLE))


def test_benchmark_loads_each_drafter_once(tmp_path, monkeypatch):
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
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert (stopped.value.code or 0) == code
        return capsys.readouterr()

    return command


@pytest.fixture
def target_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "specdec.cli.loading.load_weights", lambda name, **options: target_of(int(name)).model
    )


@pytest.mark.usefixtures("target_folder")
def test_convert_command_prints_the_mapping_and_converts(run, tmp_path):
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


def test_conversion_table_has_a_row_per_tensor(tmp_path):
    conversion = import_drafter(APPLE, target_of())
    assert conversion_table(conversion).row_count == len(conversion.moves) == 9


def test_argument_of_a_method_may_be_part_of_a_union_or_hold_a_plus(tmp_path):
    for name in ("store", "a+b"):
        (tmp_path / name).mkdir()
    store = tmp_path / "store"
    assert names._parts(f"suffix+rest:{store}") == ["suffix", f"rest:{store}"]
    assert names._parts(f"rest:{store}+suffix") == [f"rest:{store}", "suffix"]
    assert names._parts(f"rest:{tmp_path / 'a+b'}") == [f"rest:{tmp_path / 'a+b'}"]
    assert names._parts(str(tmp_path / "a+b")) == [str(tmp_path / "a+b")]
