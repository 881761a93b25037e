"""Training: a loop that a kill does not change, errors, and a drafter in a folder."""

import gzip
import json
from dataclasses import replace

import pytest
import torch

from specdec.checkpoints import load_drafter_checkpoint
from specdec.drafters.eagle3 import new_module
from specdec.drafters.medusa import MedusaConfig
from specdec.drafters.redrafter import ReDrafterConfig
from specdec.selftext.conversation import check_conversations, read_conversations, read_turns
from specdec.selftext.record import Conversation
from specdec.train import loop
from specdec.train.eagle3 import Eagle3Task
from specdec.train.kangaroo import KangarooTask
from specdec.train.loop import Schedule, train
from specdec.train.run import Recipe, train_drafter
from training_tasks import (
    eagle3_config,
    eagle3_task,
    kangaroo_config,
    kangaroo_task,
    medusa_task,
    redrafter_task,
)


@pytest.mark.parametrize("make", [redrafter_task, medusa_task, kangaroo_task, eagle3_task])
def test_training_reduces_loss_and_raises_accuracy(target, features, tmp_path, make):
    log = train(make(target, features), tmp_path, Schedule(epochs=60, batch=16, learning_rate=3e-3))
    losses = [line["loss"] for line in log if "loss" in line]
    rights = [line["right_1"] for line in log if "right_1" in line]
    assert losses[-1] < 0.95 * losses[0]  # the teacher's own entropy stays
    assert rights[-1] > rights[0] + 0.1


@pytest.mark.parametrize("make", [redrafter_task, medusa_task, kangaroo_task, eagle3_task])
def test_killed_training_resumes_with_an_identical_loss_curve(
    target, features, tmp_path, make, monkeypatch
):
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0)
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS", 3)
    schedule = Schedule(epochs=3, batch=5)
    whole_task = make(target, features, validate=lambda: {"fixed": 1.0})
    whole = train(whole_task, tmp_path / "whole", schedule)

    class Killed(Exception):
        pass

    for place in (4, 11):  # inside an epoch, more than once

        def kill(step, steps, figures, place=place):
            if step >= place:
                raise Killed

        task = make(target, features, validate=lambda: {"fixed": 1.0})
        with pytest.raises(Killed):
            train(task, tmp_path / "killed", schedule, progress=kill)
    task = make(target, features, validate=lambda: {"fixed": 1.0})
    assert train(task, tmp_path / "killed", schedule) == whole
    ours, theirs = task.model.state_dict(), whole_task.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = (tmp_path / "killed" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == whole
    for other, of in ((replace(schedule, epochs=4), None), (schedule, {"exit_layer": 1})):
        with pytest.raises(ValueError, match="folder: expected a run of"):
            train(task, tmp_path / "killed", other, of=of)


def test_error_names_the_invalid_setting_or_data(target, features, conversations, tmp_path):
    with pytest.raises(ValueError, match="labels: expected one of"):
        redrafter_task(target, features, labels="data")
    with pytest.raises(ValueError, match=r"exit_layer: expected one of \[1, 2\]"):
        config = replace(kangaroo_config(), exit_layer=3)
        KangarooTask(target, config.new_adapter(), features, config=config)
    for layers, message in ((None, "some that are named"), ((1, 3), r"some of \[1, 2\] .*, got 3")):
        shape = replace(eagle3_config(), layers=layers)
        with pytest.raises(ValueError, match=f"layers: expected {message}"):
            Eagle3Task(target, new_module(shape, 61, None), features)
    shape = replace(eagle3_config(), own_embedding=True)
    with pytest.raises(ValueError, match="own_embedding: expected False for a training, got True"):
        Eagle3Task(target, new_module(shape, 61, None), features)
    with pytest.raises(ValueError, match="epochs: expected at least 1"):
        Schedule(epochs=0)
    with pytest.raises(ValueError, match="learning_rate: expected above 0"):
        Schedule(learning_rate=0.0)
    with pytest.raises(ValueError, match="batch: expected at most"):
        train(redrafter_task(target, features), tmp_path, Schedule(batch=10**6))
    for text in ("{", '{"prompt_ids": [1]}', '{"prompt_ids": ["a"], "answer_ids": []}'):
        path = tmp_path / "data.jsonl"
        path.write_text(text + "\n")
        with pytest.raises(ValueError, match="data: expected an object with prompt_ids"):
            read_conversations(path)
    with pytest.raises(ValueError, match="data: expected a readable JSONL file"):
        read_conversations(tmp_path / "nothing")
    damaged = tmp_path / "data.jsonl.gz"
    damaged.write_bytes(gzip.compress(b'{"prompt_ids": [1], "answer_ids": [2]}' * 99)[:-20])
    with pytest.raises(ValueError, match="data: expected a readable JSONL file"):
        read_conversations(damaged)
    for prompt, answer, message in (
        ([1], [99], "data: expected ids below 61, got 99 in conversation 2"),
        ([1], [2] * 160, "data: expected a prompt and 2 to 160 tokens, got 1 and 161"),
        ([1], [], "data: expected a prompt and 2 to 160 tokens, got 1 and 1"),
        ([], [2, 3], "data: expected a prompt and 2 to 160 tokens, got 0 and 2"),
    ):
        with pytest.raises(ValueError, match=message):
            check_conversations([conversations[0], Conversation(prompt, answer)], target)
    for options in ({"held_out": 0}, {"draft_vocabulary": -3}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected at least 1"):
            Recipe(Schedule(), **options)
    path.write_text('{"text": 3}\n')
    with pytest.raises(ValueError, match="prompts: expected an object with text"):
        read_turns(path)


@pytest.mark.parametrize("method", ["redrafter", "medusa", "kangaroo", "eagle3"])
def test_train_drafter_writes_a_loadable_checkpoint(target, conversations, tmp_path, method):
    path = tmp_path / "data.jsonl"
    lines = [{"prompt_ids": c.prompt_ids, "answer_ids": c.answer_ids} for c in conversations]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "redrafter": ReDrafterConfig(hidden_size=48, exit_dim=96, tied_head=True, trained_length=3, draft_length=3),
        "medusa": MedusaConfig(hidden_size=48, heads=3, output="projected"),
        "kangaroo": kangaroo_config(),
        "eagle3": eagle3_config(),
    }[method]  # fmt: skip
    recipe = Recipe(Schedule(epochs=2, batch=8), draft_vocabulary=30, held_out=3)
    out = tmp_path / "drafter"
    told = []
    log = train_drafter(
        target, config, [path], tmp_path / "run", out, recipe,
        progress=lambda what, done, total, figures: told.append(what),
    )  # fmt: skip
    assert {"reading", "training"} <= set(told)
    validations = [line["validation"] for line in log if "validation" in line]
    assert len(validations) == 2
    assert all(v["tokens_per_round"] >= 1 and "ctar_1" in v for v in validations)
    assert json.loads((out / "training.json").read_text())["log"] == log
    load_drafter_checkpoint(out, target)
    for wrong in ([3], [0]):
        with pytest.raises(
            ValueError, match="exit_layer: expected 1 to 2 of the target's 3 layers"
        ):
            train_drafter(target, config, [path], tmp_path / "r", out, recipe, exit_layers=wrong)
    # Nothing goes on from a training of something else.
    setting = {"kangaroo": "gamma", "eagle3": "depth"}.get(method, "draft_length")
    other = replace(config, **{setting: 2})
    with pytest.raises(ValueError, match="folder: expected a run of"):
        train_drafter(target, other, [path], tmp_path / "run", out, recipe)
