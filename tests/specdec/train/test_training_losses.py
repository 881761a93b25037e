"""What is trained on and what is minimised: features, draft vocabulary and losses."""

import copy
from types import SimpleNamespace

import pytest
import torch

from specdec.drafters.eagle3 import Eagle3Drafter
from specdec.drafters.kangaroo import KangarooDrafter
from specdec.drafters.parts.eagle3_tree import DraftTree
from specdec.model.cache import Rows
from specdec.model.target import Target
from specdec.state import State
from specdec.text import Text
from specdec.train import features as features_module
from specdec.train.begin import copy_final_norm
from specdec.train.eagle3 import DECAY
from specdec.train.features import Features, collect_features
from specdec.train.kangaroo import new_task
from specdec.train.loss import chunked_cross_entropy
from specdec.train.redrafter import frequent_tokens
from specdec.tree import TokenTree
from specdec_kernels import LMHeadTopK, tree_attention
from tiny import VOCABULARY, tiny_model
from training_tasks import (
    EXIT,
    eagle3_task,
    kangaroo_config,
    kangaroo_task,
    medusa_task,
    redrafter_task,
)


def test_draft_vocabulary_holds_the_most_probable_tokens():
    none = torch.zeros(0)
    ids = torch.tensor([[1, 9], [1, 4], [1, 4]], dtype=torch.int32)
    probs = torch.tensor([[0.6, 0.4], [0.9, 0.05], [0.8, 0.2]])
    features = Features(none, none, none, none, none, ids, probs, {})
    # 4 is there twice, but with less in all.
    assert frequent_tokens(features, 2, 12).tolist() == [1, 9]


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
        (target, conversations[:-1], [EXIT]), (target, conversations, [3]), (other, conversations, [EXIT])
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
    ours = chunked_cross_entropy(head, hidden, compare, learned, torch.float64)
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


@pytest.mark.parametrize("labels", ["distribution", "greedy"])
@pytest.mark.parametrize("output", ["own", "projected", "target"])
def test_medusa_loss_equals_the_papers_formula(target, features, output, labels):
    """Written again, slowly: one head and one position at a time, 0.8^k per head."""
    task = medusa_task(target, features, output, labels=labels)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    units = task.units[5:25:3]
    loss, figures = task.loss(units)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.model.parameters())
    assert set(figures) == {"right_1", "right_2", "right_3"}
    ids = task.model.draft_vocabulary
    ids = list(range(VOCABULARY)) if ids is None else ids.tolist()
    expected = 0.0
    for k in (1, 2, 3):
        losses, head = [], task.model.heads[k - 1]
        for position in units.tolist():
            end = int(features.ends[features.ends > position].min())
            path = range(position + 1, position + k)
            left = any(features.tokens[t + 1] != features.top_ids[t, 0] for t in path)
            if position + k >= end - 1 or (labels == "greedy" and left):
                continue
            with torch.no_grad():
                read = head(features.hidden[position].float())
                if head.output is not None:
                    read = head.output(read)
                if output != "own":
                    read = target.model.lm_head.weight[ids] @ read
                log_probs = read.log_softmax(-1)
            kept = 1 if labels == "greedy" else 16
            said = zip(
                features.top_ids[position + k, :kept].tolist(),
                features.top_probs[position + k, :kept].tolist(),
                strict=True,
            )
            known = [(ids.index(i), p) for i, p in said if i in ids]
            total = sum(p for _, p in known)
            losses.append(-sum(p / total * float(log_probs[i]) for i, p in known) if known else 0.0)
        expected += 0.8**k * sum(losses) / len(losses)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_new_medusa_heads_equal_the_targets_head(target, features):
    hidden = features.hidden[:5].float()
    for output in ("own", "projected", "target"):
        task = medusa_task(target, features, output)
        for head, x in zip(task.heads, task.model(hidden), strict=True):
            expected = target.draft_head(task.model.draft_vocabulary).logits(hidden)
            torch.testing.assert_close(head.logits(x), expected)


def test_norm_stays_as_it_is_where_the_target_has_no_final_norm():
    norm = torch.nn.RMSNorm(4)
    copy_final_norm(SimpleNamespace(parts=SimpleNamespace(norm=None), dtype=torch.float32, device="cpu"), norm)  # fmt: skip
    assert torch.equal(norm.weight, torch.ones(4))


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
            attended = tree_attention(
                q,
                *cache.update(keys, values, drafter._layer),
                prefix_lens=now.prefix_lens,
                ancestors=now.ancestors,
                depth=now.depth,
            )
            read = drafter.adapter.finish(hidden, attended)[:, 0]
            taught = task.head.logits(features.hidden[position][None].float()).softmax(-1)
            losses[position] = float(-(taught * task.head.logits(read).log_softmax(-1)).sum())
    learned = [losses[position] for position in range(first, end - 1)]
    assert float(loss) == pytest.approx(sum(learned) / len(learned), rel=1e-4)
    # One position more or less would show.
    assert losses[end - 1] != pytest.approx(float(loss), rel=1e-2)
    assert losses[first] != pytest.approx(float(loss), rel=1e-2)


def test_eagle3_loss_equals_drafting_after_the_true_text_at_every_position(target, features):
    """The loss is that of drafts which are given the true tokens: one place and one pass at a time, on a cache."""
    task = eagle3_task(target, features)
    unit = 3
    start, end = int(features.starts[unit]), int(features.ends[unit])
    ids = task.teacher.id_map
    layers = task.model.config.layers
    drafter = Eagle3Drafter(target, task.model.config, copy.deepcopy(task.model), ids)
    passes = task.model.config.passes
    losses = [[] for _ in range(passes)]
    with torch.no_grad():
        loss, figures = task.loss(torch.tensor([unit]))
        tokens = features.tokens[start:end].long()
        inputs = {layer: features.exits[layer][start:end].float() for layer in layers}
        for place in range(end - start - 1):
            state = state_behind(target, drafter, tokens[: place + 2], inputs)
            tree, hidden = (
                DraftTree(drafter.model, state),
                drafter._fuse({layer: x[None, place, None] for layer, x in inputs.items()}),
            )
            for step in range(passes):
                at = place + 1 + step  # whose distribution is learned
                if at >= end - start:
                    break
                embedded = target.embed(tokens[None, at, None])
                hidden = tree.add(embedded, hidden, torch.tensor([[0 if step else -1]]))
                best = int(features.top_ids[start + at, 0])
                if (
                    start + at < int(features.begins[unit])
                    or at >= end - start - 1
                    or best not in ids
                ):
                    continue
                said = features.hidden[start + at][None].float()
                taught = task.teacher.logits(said).softmax(-1)
                read = drafter.head.logits(drafter.model.output_norm(hidden[:, 0])).log_softmax(-1)
                losses[step].append(float(-(taught * read).sum()))
    means = [sum(each) / len(each) for each in losses if each]
    assert len(means) == passes
    assert float(loss) == pytest.approx(sum(DECAY**i * m for i, m in enumerate(means)), rel=1e-4)
    assert figures.keys() == {"right_1", "right_7"}


def state_behind(target, drafter, tokens, inputs):
    """A row whose cache holds the drafter's keys and values of a text, but for its last pair."""
    length = len(tokens) - 1
    cache = target.new_cache(rows=1, capacity=length + 1, tree_capacity=8)
    chain = TokenTree.chain(tokens[None, 1:])
    cache.open(chain.ancestors, chain.depth, Rows.first(1, target.device))
    read = {layer: x[None, :length] for layer, x in inputs.items()}
    drafter._read_prompt(read, tokens[None, 1:], cache)
    cache.set_lengths([length])
    text = Text([tokens.tolist()], [1], margin=2, device=target.device)
    state = State(cache, text, eos_token_ids=frozenset())
    state._roots = 1
    return state


@pytest.mark.parametrize("adapter", ["attention", "layer", "mlp", "none"])
@pytest.mark.parametrize("own_head", [False, True])
def test_training_reduces_the_loss_of_every_kangaroo_adapter(target, features, adapter, own_head):
    size = 40 if adapter == "layer" else None
    config = kangaroo_config(adapter=adapter, own_head=own_head, mlp_size=size)
    torch.manual_seed(0)
    task = new_task(target, config, features, None, labels="distribution", validate=dict)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        loss, figures = task.loss(task.units[(step % 2) :: 2])
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in task.model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert set(figures) == {"right_1", "overlap"}
    assert losses[-1] < losses[1]
