"""EAGLE-3 against the authors' code: features, keys and values, drafted levels, trees, rounds and training on their arrays."""

import copy
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from specdec.checkpoints import load_folder
from specdec.decode import begin, pack
from specdec.drafters.parts.eagle3_tree import DraftTree
from specdec.drafters.protocol import Budget
from specdec.metrics import Metrics
from specdec.model.target import Target
from specdec.pickers import Greedy, PathPicker
from specdec.prompts import Prompts
from specdec.sampling import Sampling
from specdec.session import Session
from specdec.state import State
from specdec.text import Text
from specdec.train.eagle3 import DECAY, Eagle3Task, run_passes
from specdec.train.features import Features
from tiny import SEED, library_greedy, library_sampled

GOLDENS = Path(__file__).parents[2] / "data" / "eagle3"
CASES = sorted(folder.name for folder in GOLDENS.iterdir())
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
NEAR = 1e-4
"""Gap between scores from which on the order of float32 sums may decide."""
PASSES = 7


@lru_cache
def golden(case):
    """The authors' record, its arrays, the target and our drafter with their weights."""
    folder = GOLDENS / case
    record = json.loads((folder / "golden.json").read_text())
    arrays = np.load(folder / "golden.npz")
    with torch.inference_mode(False):
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        target = Target(model.eval().requires_grad_(False))
        theirs = record["config"]
        drafter = load_folder(
            folder / "draft",
            target,
            depth=theirs["depth"] + 1,
            width=theirs["top_k"],
            min_prob=0,
            min_step_prob=0,
        )
    return SimpleNamespace(
        record=record,
        arrays={name: torch.from_numpy(arrays[name]) for name in arrays.files},
        target=target,
        drafter=drafter,
        nodes=theirs["total_token"],
    )


def cases():
    return [(case, at) for case in CASES for at in range(len(golden(case).record["rounds"]))]


@lru_cache
def drafted(case, at):
    """One draft of ours where a round of theirs began, and what it computed."""
    of = golden(case)
    round_ = of.record["rounds"][at]
    ids = of.record["final"][: round_["input_len"]]
    fused, levels = [], []
    fuse, add = of.drafter.model.fuse, DraftTree.add

    def spy(tree, embedded, hidden, parents):
        out = add(tree, embedded, hidden, parents)
        positions = tree.state.cache.current.positions[0, -parents.shape[1] :]
        levels.append((positions.tolist(), out[0]))
        return out

    hook = fuse.register_forward_hook(lambda module, args, out: fused.append((args[0][0], out[0])))
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        cache = of.target.new_cache(
            rows=1, capacity=len(ids) + 9, tree_capacity=max(of.nodes, of.drafter.listener.nodes)
        )
        text = Text([list(ids)], [9], margin=of.nodes + 1, device=of.target.device)
        state = State(cache, text, eos_token_ids=frozenset())
        begin(of.target, of.drafter, Greedy(), state, Prompts(state), Metrics())
        keys_values = cache.drafter_kv[0, :, 0, :, : len(ids)].clone()
        patch.setattr(DraftTree, "add", spy)
        budget = Budget(of.nodes, of.nodes - 1, torch.tensor([of.nodes - 1]))
        proposals = of.drafter.draft(state, budget)
        tree = pack(state.roots, proposals, budget)
    hook.remove()
    return SimpleNamespace(
        record=round_, root=int(state.roots), fused=fused[0], keys_values=keys_values, levels=levels, tree=tree,
        of=of, arrays={k.split("/")[1]: x for k, x in of.arrays.items() if k.startswith(f"round{at}/")},
    )  # fmt: skip


def paths_of(tokens, parents):
    """Per node the tokens from the root to it."""
    paths = []
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


@pytest.mark.parametrize(("case", "at"), cases())
def test_features_fused_states_and_keys_and_values_equal_the_authors(case, at):
    ours = drafted(case, at)
    assert ours.root == ours.record["sample_token"]
    features, fused = ours.fused
    new = len(ours.arrays["features"])
    torch.testing.assert_close(features[-new:], ours.arrays["features"], **CLOSE)
    assert ours.keys_values.shape[2] == ours.record["draft_kv_len"]
    if "fused" in ours.arrays:
        torch.testing.assert_close(fused[-new:], ours.arrays["fused"], **CLOSE)
        torch.testing.assert_close(ours.keys_values[0], ours.arrays["draft_k"], **CLOSE)
        torch.testing.assert_close(ours.keys_values[1], ours.arrays["draft_v"], **CLOSE)


@pytest.mark.parametrize(("case", "at"), cases())
def test_drafted_levels_equal_the_authors(case, at):
    ours = drafted(case, at)
    model, arrays = ours.of.drafter.model, ours.arrays
    root = ours.levels[0][1]
    torch.testing.assert_close(root[0], arrays["draft_hidden"][-1], **CLOSE)
    if "first_logprob" in arrays:
        said = model.output(model.output_norm(root))[0].log_softmax(-1)
        torch.testing.assert_close(said, arrays["first_logprob"], **CLOSE)
    assert len(ours.levels) == 1 + len(ours.record["levels"])
    if ours.record["topk_min_gap"] < NEAR:
        return  # which beams are followed is a matter of rounding; the tree is compared below
    for step, (level, theirs) in enumerate(
        zip(ours.levels[1:], ours.record["levels"], strict=True)
    ):
        positions, hidden = level
        assert positions == theirs["position_ids"]
        if "level_hidden" in arrays:
            torch.testing.assert_close(hidden, arrays["level_hidden"][step], **CLOSE)
        best = model.output(model.output_norm(hidden)).topk(len(hidden)).indices
        assert best.tolist() == theirs["node_topk_draft_ids"]


@pytest.mark.parametrize(("case", "at"), cases())
def test_trees_and_scores_equal_the_authors(case, at):
    ours = drafted(case, at)
    tree, theirs = ours.tree, ours.record
    size = int(tree.sizes)
    assert size == len(theirs["tree_tokens"]) == ours.of.nodes
    paths = paths_of(tree.tokens[0].tolist(), tree.parents[0].tolist())
    scores = dict(zip(paths, tree.scores[0].tolist(), strict=True))
    their_paths = paths_of(theirs["tree_tokens"], theirs["parents"])
    their_scores = dict(zip(their_paths, theirs["tree_scores"], strict=True))
    if theirs["topk_min_gap"] >= NEAR:
        assert scores.keys() == their_scores.keys()
    for path in scores.keys() & their_scores.keys():
        assert scores[path] == pytest.approx(their_scores[path], abs=1e-4)
    # Where one of them has another node, it is as good as the one that it stands for.
    worst = min(their_scores.values())
    for path in scores.keys() ^ their_scores.keys():
        assert (scores | their_scores)[path] == pytest.approx(worst, abs=2 * NEAR)


@pytest.mark.parametrize("case", CASES)
def test_rounds_and_text_equal_the_authors(case):
    of = golden(case)
    rounds, final = of.record["rounds"], of.record["final"]
    session = Session(of.target, of.drafter, max_nodes=of.nodes, guard=False)
    text, gained, picked = list(of.record["prompt"]), [], []

    def watch(round_):
        if round_.tree is not None:
            paths = paths_of(round_.tree.tokens[0].tolist(), round_.tree.parents[0].tolist())
            picked.append(dict(zip(paths, round_.picked[0].tolist(), strict=True)))

    for (emitted,) in session.stream([text], max_new_tokens=len(final), on_round=watch):
        text += emitted.tokens
        gained.append(emitted.tokens)
    assert text[: len(final)] == final == of.record["greedy"]
    assert gained[0] == [rounds[0]["sample_token"]]
    for ours, said, theirs in zip(gained[1:], picked, rounds, strict=False):
        assert ours == [*theirs["accepted_tokens"][1:], theirs["next_token"]]
        paths = paths_of(theirs["tree_tokens"], theirs["parents"])
        for path, token in zip(paths, theirs["verified_argmax_node"], strict=True):
            assert said.get(path, token) == token


@pytest.mark.parametrize("case", CASES)
def test_training_logits_losses_and_accuracies_equal_the_authors(case):
    of = golden(case)
    given = {k.removeprefix("train/"): x for k, x in of.arrays.items() if k.startswith("train/")}
    ids = given["input_ids"]
    # Their training reads the target in float16 weights, and rotates by 10000 whatever the configuration says.
    teacher = copy.deepcopy(of.target.model)
    for weight in teacher.parameters():
        weight.data = weight.data.half().float()
    model = copy.deepcopy(of.drafter.model)
    model.config = replace(model.config, rope_theta=10000.0)
    with torch.no_grad():
        said = teacher(ids, attention_mask=given["attention_mask"], output_hidden_states=True)
        states = [said.hidden_states[layer] for layer in of.drafter.listener.layers]
        rounds = list(run_passes(of.target, model, torch.cat(states, -1), ids, PASSES))
        logits = torch.stack([model.output(model.output_norm(out)) for out in rounds])
    assert len(rounds) == PASSES == len(given["logits"])
    # Behind a text there is padding, of which nothing is learned.
    real = given["attention_mask"].bool()
    torch.testing.assert_close(logits[:, real], given["logits"][:, real], rtol=1e-3, atol=2e-4)

    known = of.drafter.head.id_map
    known = torch.arange(said.logits.shape[-1]) if known is None else known
    losses, mask, target_logits = [], given["loss_mask"].float(), said.logits
    for step in range(PASSES):
        target_logits = torch.cat([target_logits[:, 1:], 0 * target_logits[:, :1]], 1)
        best = target_logits.argmax(-1)
        learned = mask * torch.isin(best, known)
        taught = target_logits[..., known].softmax(-1)
        losses.append(-((taught * logits[step].log_softmax(-1)).sum(-1) * learned).mean())
        right = (known[logits[step].argmax(-1)] == known[taught.argmax(-1)]) * learned
        assert float(right.sum() / mask.sum()) == pytest.approx(float(given["acc"][step]), abs=1e-6)
        mask = torch.cat([mask[:, 1:], 0 * mask[:, :1]], 1)
    torch.testing.assert_close(torch.stack(losses), given["plosses"], rtol=1e-5, atol=1e-5)
    total = sum(DECAY**step * loss for step, loss in enumerate(losses))
    torch.testing.assert_close(total, given["loss"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_loss_of_the_task_equals_the_authors(case):
    of = golden(case)
    given = {k.removeprefix("train/"): x for k, x in of.arrays.items() if k.startswith("train/")}
    ids, mask = given["input_ids"], given["loss_mask"].bool()
    teacher = copy.deepcopy(of.target.model)
    for weight in teacher.parameters():
        weight.data = weight.data.half().float()
    with torch.no_grad():
        said = teacher(ids, attention_mask=given["attention_mask"], output_hidden_states=True)
    model, layers = copy.deepcopy(of.drafter.model).requires_grad_(), of.drafter.listener.layers
    model.config = replace(model.config, rope_theta=10000.0, layers=layers)

    def rows(x):
        """Behind each text two positions of zeros: theirs learns a uniform distribution there."""
        return torch.cat([x, torch.zeros_like(x[:, :2])], 1).flatten(0, 1)

    size = ids.shape[1] + 2
    starts = torch.arange(len(ids)) * size
    best = said.logits.argmax(-1)
    features = Features(
        starts, starts + 1, starts + size, rows(ids).int(), rows(said.hidden_states[-1]), rows(best)[:, None],
        torch.ones(len(ids) * size, 1), {layer: rows(said.hidden_states[layer]) for layer in layers},
    )  # fmt: skip
    known = of.drafter.head.id_map
    task = Eagle3Task(of.target, model, features, draft_vocabulary=known)
    task.teacher = Target(teacher).draft_head(known)
    # Their mask may have gaps: a distribution is learned behind a token of an answer.
    learned = torch.cat([torch.zeros_like(mask[:, :1]), mask, torch.zeros_like(mask[:, :1])], 1)
    task.best = torch.where(learned.flatten(), task.best, -1)
    # Theirs is the mean over all positions, ours over the learned ones.
    counts = [(task.best.view(-1, size)[:, step + 1 : -1] >= 0).sum() for step in range(PASSES)]
    expected = sum(
        DECAY**step * loss * ids.numel() / count
        for step, (loss, count) in enumerate(zip(given["plosses"], counts, strict=True))
    )
    loss, _ = task.loss(torch.arange(len(ids)))
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("how", ["greedy", "sampled"])
@pytest.mark.parametrize("at_once", [None, 2])
def test_batch_tokens_with_accepted_drafts_equal_transformers(how, at_once):
    of = golden("gqa_d2t")
    with torch.inference_mode(False):
        model = copy.deepcopy(of.target.model).double()
    target, final = Target(model), of.record["final"]
    drafter = load_folder(GOLDENS / "gqa_d2t" / "draft", target, depth=4, width=4)
    prompts = [final[:11], final[8:40], final[30:31], final[20:38]]
    picker, new = None, 24
    if how == "sampled":
        picker = PathPicker(Sampling(SEED, torch.arange(len(prompts))))
        expected = [library_sampled(model, ids, new, row) for row, ids in enumerate(prompts)]
    else:
        expected = [library_greedy(model, ids, new) for ids in prompts]
    session = Session(target, drafter, max_nodes=12, guard=False)
    written = session.generate(prompts, max_new_tokens=new, picker=picker, rows_at_once=at_once)
    assert written.tokens == expected
    assert written.metrics.tokens_per_round > 1.5
