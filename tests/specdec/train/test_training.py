"""Training: features, losses, and a loop that a kill does not change."""

import copy
import gzip
import json
from dataclasses import replace

import pytest
import torch

from specdec.checkpoints import load_drafter_checkpoint
from specdec.drafters.kangaroo import KangarooConfig, KangarooDrafter
from specdec.drafters.redrafter import ReDrafterConfig, ReDrafterModel
from specdec.model.cache import Rows
from specdec.model.target import Target
from specdec.selftext.conversation import check_conversations, read_conversations, read_turns
from specdec.selftext.record import Conversation
from specdec.train import features as features_module
from specdec.train import loop
from specdec.train.features import Features, collect_features
from specdec.train.kangaroo import KangarooTask
from specdec.train.loop import Schedule, train
from specdec.train.loss import chunked_cross_entropy
from specdec.train.redrafter import ReDrafterTask, frequent_tokens
from specdec.train.run import Recipe, train_drafter
from specdec.tree import TokenTree
from specdec_kernels import LMHeadTopK
from tiny import VOCABULARY, library_greedy, random_prompt, tiny_model

EXIT = 2


@pytest.fixture(scope="module")
def target():
    return Target(tiny_model("llama", 7, torch.float32))


@pytest.fixture(scope="module")
def conversations(target):
    prompts = [random_prompt(3 + seed % 5, seed) for seed in range(40)]
    return [Conversation(p, library_greedy(target.model, p, 12 + len(p))) for p in prompts]


@pytest.fixture(scope="module")
def features(target, conversations, tmp_path_factory):
    return collect_features(target, conversations, tmp_path_factory.mktemp("f"), exit_layers=[EXIT])


def redrafter_task(target, features, **options):
    torch.manual_seed(0)
    config = ReDrafterConfig(
        hidden_size=48, exit_dim=96, tied_head=True, trained_length=3, draft_length=3
    )
    ids = frequent_tokens(features, 30, VOCABULARY)
    return ReDrafterTask(target, ReDrafterModel(config, VOCABULARY, ids), features, **options)


def test_draft_vocabulary_holds_the_most_probable_tokens():
    none = torch.zeros(0)
    ids = torch.tensor([[1, 9], [1, 4], [1, 4]], dtype=torch.int32)
    probs = torch.tensor([[0.6, 0.4], [0.9, 0.05], [0.8, 0.2]])
    features = Features(none, none, none, none, none, ids, probs, {})
    # 4 is there twice, but with less in all.
    assert frequent_tokens(features, 2, 12).tolist() == [1, 9]


def kangaroo_config():
    return KangarooConfig(hidden_size=48, heads=6, kv_heads=2, head_dim=8, exit_layer=EXIT)


def kangaroo_task(target, features, **options):
    torch.manual_seed(0)
    return KangarooTask(
        target, kangaroo_config().new_adapter(), features, exit_layer=EXIT, **options
    )


def test_features_equal_the_targets_hidden_states_and_top_tokens(target, conversations, features):
    assert len(features) == len(conversations)
    texts = {tuple(c.prompt_ids + c.answer_ids): c for c in conversations}
    for start, answer, end in zip(
        features.starts.tolist(), features.answers.tolist(), features.ends.tolist(), strict=True
    ):
        ids = features.tokens[start:end]
        conversation = texts[tuple(ids.tolist())]
        assert answer - start == len(conversation.prompt_ids)
        with torch.no_grad():
            out = target.model(ids[None].long(), output_hidden_states=True)
        probs, best = out.logits[0].softmax(-1).topk(16)
        assert torch.equal(features.top_ids[start:end].long(), best)
        torch.testing.assert_close(features.top_probs[start:end], probs, rtol=1e-3, atol=1e-4)
        for ours, theirs in (
            (features.hidden, out.hidden_states[-1]),
            (features.exits[EXIT], out.hidden_states[EXIT]),
        ):
            torch.testing.assert_close(ours[start:end].float(), theirs[0], rtol=2e-2, atol=2e-2)
        # The answers were written greedily, so each token is the label of the position before it.
        written = features.tokens[answer:end]
        assert torch.equal(written, features.top_ids[answer - 1 : end - 1, 0])


def test_feature_collection_resumes_after_a_kill(
    target, conversations, features, tmp_path, monkeypatch
):
    monkeypatch.setattr(features_module, "BATCH_TOKENS", 200)

    class Killed(Exception):
        pass

    def kill(done):
        if done > 20:
            raise Killed

    with pytest.raises(Killed):
        collect_features(target, conversations, tmp_path, exit_layers=[EXIT], progress=kill)
    with (tmp_path / "hidden").open("ab") as file:
        file.write(b"half a batch")
    again = collect_features(target, conversations, tmp_path, exit_layers=[EXIT])
    assert torch.equal(again.starts, features.starts)
    assert torch.equal(again.tokens, features.tokens)
    torch.testing.assert_close(again.hidden, features.hidden, rtol=2e-2, atol=2e-2)
    # Layers that nobody asks for do no harm; missing ones, other texts and other targets are refused.
    assert torch.equal(collect_features(target, conversations, tmp_path).tokens, again.tokens)
    other = Target(tiny_model("llama", 8, torch.float32))
    for who, what, layers in (
        (target, conversations[:-1], [EXIT]), (target, conversations, [1]), (other, conversations, [EXIT])
    ):  # fmt: skip
        with pytest.raises(ValueError, match="features: expected those of"):
            collect_features(who, what, tmp_path, exit_layers=layers)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_chunked_cross_entropy_equals_cross_entropy(softcap, monkeypatch):
    monkeypatch.setattr("specdec.train.loss.ROWS", 3)
    torch.manual_seed(0)
    head = LMHeadTopK(torch.nn.Linear(6, 11, dtype=torch.float64), softcap=softcap, logit_scale=1.5)
    hidden = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    taught = torch.randn(8, 11, dtype=torch.float64).softmax(-1)

    def compare(predicted, here):
        loss = -(taught[here] * predicted.log()).sum()
        predicted -= taught[here]
        return loss

    learned = list(head.parameters())
    wanted = [hidden, *learned]
    ours = chunked_cross_entropy(head, hidden, compare, learned)
    theirs = torch.nn.functional.cross_entropy(head.logits(hidden), taught, reduction="sum")
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)
    ours_grads = torch.autograd.grad(ours, wanted)
    for a, b in zip(ours_grads, torch.autograd.grad(theirs, wanted), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("labels", ["distribution", "greedy"])
def test_redrafter_loss_equals_the_papers_formula(target, features, labels):
    """Written again, slowly: one position and one step at a time."""
    task = redrafter_task(target, features, labels=labels)
    units = task.units[5:25:3]
    with torch.no_grad():
        loss, _ = task.loss(units)
    ids = task.model.draft_vocabulary.tolist()
    weight = target.draft_head(task.model.draft_vocabulary).linear.weight
    losses = []
    for position in units.tolist():
        end = int(features.ends[features.ends > position].min())
        for length in range(1, 4):
            last = position + length
            if last >= end - 1:
                continue
            path = range(position + 1, last)
            if labels == "greedy" and any(
                features.tokens[t + 1] != features.top_ids[t, 0] for t in path
            ):
                continue
            tokens = features.tokens[position + 1 : last + 1].long()
            with torch.no_grad():
                hidden = features.hidden[position][None].float()
                out = task.model(target.embed(tokens[:, None]), hidden)[-1, 0]
                log_probs = (weight @ out).log_softmax(-1)
            kept = 1 if labels == "greedy" else 16
            known = [
                (ids.index(i), p)
                for i, p in zip(
                    features.top_ids[last, :kept].tolist(),
                    features.top_probs[last, :kept].tolist(),
                    strict=True,
                )
                if i in ids
            ]
            total = sum(p for _, p in known)
            losses.append(-sum(p / total * float(log_probs[i]) for i, p in known) if known else 0.0)
    assert float(loss) == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("make", [redrafter_task, kangaroo_task])
def test_training_reduces_loss_and_raises_accuracy(target, features, tmp_path, make):
    log = train(make(target, features), tmp_path, Schedule(epochs=60, batch=16, learning_rate=3e-3))
    losses = [line["loss"] for line in log if "loss" in line]
    rights = [line["right_1"] for line in log if "right_1" in line]
    assert losses[-1] < 0.95 * losses[0]  # the teacher's own entropy stays
    assert rights[-1] > rights[0] + 0.1


@pytest.mark.parametrize("make", [redrafter_task, kangaroo_task])
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


def test_kangaroo_loss_equals_drafting_one_token_at_a_time(target, features):
    """The loss over a text is that of drafting: one token at a time, on a cache."""
    task = kangaroo_task(target, features)
    drafter = KangarooDrafter(target, kangaroo_config(), copy.deepcopy(task.model))
    unit = task.units[3:4]
    start, end = int(features.starts[3]), int(features.ends[3])
    first = int(features.begins[3])
    cache = target.new_cache(rows=1, capacity=end - start, tree_capacity=2)
    rows = Rows.first(1, target.device)
    losses = {}
    with torch.no_grad():
        loss, _ = task.loss(unit)
        for position in range(start, end):
            token = TokenTree.chain(features.tokens[position].long()[None, None])
            cache.set_lengths([position - start])
            now = cache.open(token.ancestors, token.depth, rows)
            hidden = features.exits[EXIT][position].float()[None, None]
            q, keys, values = drafter.adapter.project(hidden, now.positions)
            read = drafter.adapter.attend(
                hidden,
                q,
                *cache.update(keys, values, drafter._layer),
                prefix_lens=now.prefix_lens,
                ancestors=now.ancestors,
                depth=now.depth,
            )[:, 0]
            taught = task.head.logits(features.hidden[position][None].float()).softmax(-1)
            losses[position] = float(-(taught * task.head.logits(read).log_softmax(-1)).sum())
    learned = [losses[position] for position in range(first, end - 1)]
    assert float(loss) == pytest.approx(sum(learned) / len(learned), rel=1e-4)
    # One position more or less would show.
    assert losses[end - 1] != pytest.approx(float(loss), rel=1e-2)
    assert losses[first] != pytest.approx(float(loss), rel=1e-2)


def test_error_names_the_invalid_setting_or_data(target, features, conversations, tmp_path):
    with pytest.raises(ValueError, match="labels: expected one of"):
        redrafter_task(target, features, labels="data")
    with pytest.raises(ValueError, match=r"exit_layer: expected one of \[2\]"):
        adapter = kangaroo_config().new_adapter()
        KangarooTask(target, adapter, features, exit_layer=1)
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


@pytest.mark.parametrize("method", ["redrafter", "kangaroo"])
def test_train_drafter_writes_a_loadable_checkpoint(target, conversations, tmp_path, method):
    path = tmp_path / "data.jsonl"
    lines = [{"prompt_ids": c.prompt_ids, "answer_ids": c.answer_ids} for c in conversations]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "redrafter": ReDrafterConfig(hidden_size=48, exit_dim=96, tied_head=True, trained_length=3, draft_length=3),
        "kangaroo": kangaroo_config(),
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
    other = replace(config, draft_length=2) if method == "redrafter" else replace(config, gamma=2)
    with pytest.raises(ValueError, match="folder: expected a run of"):
        train_drafter(target, other, [path], tmp_path / "run", out, recipe)
