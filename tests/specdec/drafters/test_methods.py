"""A method is one registry entry and two files; nothing else refers to it."""

import json
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from specdec.checkpoints import load_drafter_checkpoint, read_description, save_drafter
from specdec.drafters import Drafter, Proposals, load_drafter
from specdec.drafters.methods import METHODS, Method, drafter_file, method_of, train_file
from specdec.model.target import Target
from specdec.session import Session
from specdec.train.loop import Schedule
from specdec.train.run import Recipe, train_drafter
from tiny import VOCABULARY, library_greedy, random_prompt, tiny_model


@dataclass(frozen=True, slots=True)
class ToyConfig:
    hidden_size: int
    deepest: int = 2


class ToyDrafter(Drafter):
    """Says which token comes next from the last hidden state alone."""

    def __init__(self, target, config, model):
        self.target, self.config, self.model = target, config, model.to(target.dtype)

    def draft(self, state, budget):
        if not budget.depth:
            return Proposals.none(len(state.rows.host), state.text.ids.device)
        tokens = self.model(state.hidden[state.rows.ids]).argmax(-1)[:, None]
        zeros = torch.zeros_like(tokens)
        return Proposals(tokens, zeros - 1, zeros.float(), budget.row_depth[:, None] > 0, zeros)


def new_task(target, config, features, draft_vocabulary, *, labels, validate):
    model = nn.Linear(config.hidden_size, VOCABULARY)

    def loss(units):
        said = model(features.hidden[units].float())
        value = nn.functional.cross_entropy(said, features.top_ids[units, 0].long())
        return value, {"right": 0.0}

    units = torch.arange(len(features.tokens))
    return SimpleNamespace(model=model, units=units, loss=loss, validate=validate)


@pytest.fixture
def toy(monkeypatch):
    drafts, trains = ModuleType("specdec.drafters.toy"), ModuleType("specdec.train.toy")
    drafts.CONFIG, drafts.DRAFTER = ToyConfig, ToyDrafter
    drafts.new_module = lambda config, size, ids: nn.Linear(config.hidden_size, size)
    drafts.join = lambda target, config, module, ids: ToyDrafter(target, config, module)
    drafts.weights_of = lambda drafter: dict(drafter.model.state_dict())
    trains.exit_layers, trains.new_task = (lambda config: []), new_task
    monkeypatch.setitem(sys.modules, drafts.__name__, drafts)
    monkeypatch.setitem(sys.modules, trains.__name__, trains)
    monkeypatch.setitem(METHODS, "toy", Method("a toy", ("deepest",), trained=True))


def test_new_method_needs_one_entry_and_two_files(toy, tmp_path):
    target = Target(tiny_model("llama", dtype=torch.float32))
    data = tmp_path / "data.jsonl"
    lines = [
        {"prompt_ids": p, "answer_ids": library_greedy(target.model, p, 12)}
        for p in (random_prompt(5, seed) for seed in range(12))
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = ToyConfig(target.config.hidden_size)
    assert method_of(config) == "toy"
    train_drafter(
        target, config, [data], tmp_path / "run", tmp_path / "out",
        Recipe(Schedule(epochs=2, batch=8), held_out=2, draft_vocabulary=None),
    )  # fmt: skip
    described = read_description(tmp_path / "out")
    assert (described.method, described.drafter) == ("toy", config)
    drafter = load_drafter(tmp_path / "out", target, deepest=1)
    assert isinstance(drafter, ToyDrafter) and drafter.config.deepest == 1
    with pytest.raises(ValueError, match="width: expected one of the settings deepest"):
        load_drafter_checkpoint(tmp_path / "out", target, width=3)
    prompt = random_prompt(6, 99)
    written = Session(target, drafter).generate([prompt], max_new_tokens=15)
    assert written.tokens[0] == library_greedy(target.model, prompt, 15)
    union = load_drafter(f"{tmp_path / 'out'}+lookup", target)
    assert (
        Session(target, union).generate([prompt], max_new_tokens=9).tokens[0]
        == written.tokens[0][:9]
    )
    save_drafter(tmp_path / "again", drafter)
    assert read_description(tmp_path / "again").sha256.keys() == described.sha256.keys()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_entry_has_its_files_and_attributes(name):
    drafts = drafter_file(name)
    assert METHODS[name].help == METHODS[name].help.strip()
    if not METHODS[name].trained:
        assert callable(drafts.new_drafter)
        if METHODS[name].argument[:1] in ("", "["):  # none, or one that may be left out
            drafter = load_drafter(name, Target(tiny_model("llama")))
            assert all(hasattr(drafter.config, field) for field in METHODS[name].settings)
        return
    trains = train_file(name)
    assert all(
        hasattr(drafts, part) for part in ("CONFIG", "DRAFTER", "new_module", "join", "weights_of")
    )
    assert all(hasattr(trains, part) for part in ("exit_layers", "new_task"))
    assert set(METHODS[name].settings) <= set(drafts.CONFIG.__dataclass_fields__)


def test_training_free_method_accepts_its_settings():
    target = Target(tiny_model("llama"))
    assert load_drafter("lookup", target, places=2).config.places == 2
    with pytest.raises(ValueError, match="width: expected one of the settings of lookup"):
        load_drafter("lookup", target, width=2)
    with pytest.raises(ValueError, match="width: expected one of the settings of plain .none"):
        load_drafter("plain", target, width=2)


def test_deprecated_names_work_and_warn():
    target = Target(tiny_model("llama"))
    with pytest.warns(DeprecationWarning, match="drafter: expected plain, got its old name none"):
        drafter = load_drafter("none", target)
    with pytest.warns(DeprecationWarning, match="NoDrafter is PlainDrafter now"):
        from specdec.drafters import NoDrafter
    assert type(drafter) is NoDrafter
