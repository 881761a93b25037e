"""EAGLE-3 heads with an embedding of their own: which are read, and round trips of both layouts to the bit."""

from dataclasses import replace

import pytest
import torch

from eagle3_heads import assert_same, configure, rewrite
from specdec.checkpoints import (
    Layout,
    export_drafter,
    import_drafter,
    load_drafter_checkpoint,
    load_folder,
    read_description,
    save_drafter,
)
from specdec.checkpoints.tensors import read_tensors, write_safetensors
from specdec.drafters.eagle3 import Eagle3Config, Eagle3Drafter, new_module
from specdec.session import Session
from tiny import library_greedy, random_prompt

EMBEDDING = "embed_tokens.weight"
IDS = torch.arange(0, 240, 3)


def another(tensors):
    tensors[EMBEDDING] = torch.randn(240, 64, generator=torch.Generator().manual_seed(0))


def narrow(target, **options):
    """Half as wide as the target, with an embedding of its own."""
    torch.manual_seed(5)
    options = {"hidden_size": 32, "target_size": 64, "own_embedding": True} | options
    config = Eagle3Config(intermediate_size=40, heads=4, kv_heads=2, head_dim=16, **options)
    return Eagle3Drafter(target, config, new_module(config, 240, IDS).requires_grad_(False), IDS)


@pytest.mark.parametrize("layout", [Layout.eagle3, Layout.speculators])
@pytest.mark.parametrize("options", [{}, {"hidden_size": 64, "target_size": None}], ids=["narrow", "wide"])  # fmt: skip
def test_own_embedding_round_trip_is_bit_identical(target, layout, options, tmp_path):
    drafter = narrow(target, **options)
    save_drafter(tmp_path / "own", drafter)
    saved = load_drafter_checkpoint(tmp_path / "own", target)
    assert saved.config == drafter.config and saved.config.own_embedding
    assert_same(saved, drafter)
    export_drafter(tmp_path / "own", layout).write(tmp_path / "theirs")
    assert torch.equal(read_tensors(tmp_path / "theirs")[EMBEDDING], drafter.model.embedding.weight)
    loaded = load_folder(tmp_path / "theirs", target)
    assert_same(loaded, drafter)
    assert replace(loaded.config, layers=None) == replace(drafter.config, layers=None)
    import_drafter(tmp_path / "theirs", target).write(tmp_path / "again")
    digests = [read_description(tmp_path / name).sha256 for name in ("own", "again")]
    assert digests[0] == digests[1]
    prompts = [random_prompt(9, 1), random_prompt(17, 2)]
    written = Session(target, loaded, guard=False).generate(prompts, max_new_tokens=12)
    assert written.tokens == [library_greedy(target.model, p, 12) for p in prompts]


def test_embedding_is_the_heads_own_only_where_the_file_says_so(target, head, tmp_path):
    rewrite(head, another)
    with pytest.raises(ValueError, match=f"expected the target's embedding .* in tensor {EMBEDDING}"):  # fmt: skip
        load_folder(head, target)
    configure(head, target_hidden_size=64)  # the authors' code reads the head's embedding then
    drafter = load_folder(head, target)
    assert drafter.config.own_embedding and drafter.config.target_size is None
    assert torch.equal(drafter.model.embedding.weight, read_tensors(head)[EMBEDDING])
    # The target's own is left out, and without one the target's is used.
    for change in (
        lambda tensors: tensors.__setitem__(EMBEDDING, target.embedding.detach().half()),
        lambda tensors: tensors.pop(EMBEDDING),
    ):
        rewrite(head, change)
        assert not load_folder(head, target).config.own_embedding


def test_trained_embedding_of_a_speculators_head_is_read(target, head, tmp_path):
    import_drafter(head, target).write(tmp_path / "own")
    export_drafter(tmp_path / "own", Layout.speculators).write(tmp_path / "theirs")
    folder = tmp_path / "theirs"
    tensors = read_tensors(folder)
    another(tensors)
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(ValueError, match="expected the target's embedding"):
        load_folder(folder, target)
    configure(folder, embed_requires_grad=True)
    assert torch.equal(load_folder(folder, target).model.embedding.weight, tensors[EMBEDDING])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(EMBEDDING), rf"expected tensor {EMBEDDING} of shape \[240, 32\], as the head is narrower or wider than the target's embedding of 64, got none"),
        (lambda t: t.update({EMBEDDING: torch.ones(240, 31)}), rf"expected tensor {EMBEDDING} of shape \[240, 32\], got \[240, 31\]"),
        (lambda t: t.update({EMBEDDING: torch.ones(256, 32)}), rf"expected tensor {EMBEDDING} of shape \[240, 32\], got \[256, 32\]"),
        (lambda t: t.update({"fc.weight": torch.ones(32, 96)}), r"expected tensor fc.weight of shape \[32, 192\], got \[32, 96\]"),
    ],
)  # fmt: skip
def test_error_names_an_embedding_that_does_not_fit(change, message, target, tmp_path):
    save_drafter(tmp_path / "own", narrow(target))
    export_drafter(tmp_path / "own", Layout.eagle3).write(tmp_path / "theirs")
    rewrite(tmp_path / "theirs", change)
    for load in (load_folder, import_drafter):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "theirs", target)


def test_drafter_needs_an_embedding_for_every_token(target):
    config = narrow(target).config
    with pytest.raises(ValueError, match="embedding: expected 240 rows, one for each token, got 200"):  # fmt: skip
        Eagle3Drafter(target, config, new_module(config, 200, IDS), IDS)
