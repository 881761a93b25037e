"""ReDrafter: parity with the authors' code, and losslessness in every variant."""

import json
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from specdec.checkpoints import import_drafter, load_drafter_checkpoint
from specdec.drafters import LookupDrafter, MixedDrafter
from specdec.drafters.protocol import Budget
from specdec.drafters.redrafter import ReDrafter, ReDrafterConfig, ReDrafterModel, trace_back
from specdec.model.cache import Rows
from specdec.model.target import Target
from specdec.session import Session
from specdec.tree import TokenTree
from specdec_kernels import ancestor_matrix, dispatch, pack_beams
from tiny import FAMILIES, VOCABULARY, library_greedy, random_prompt, tiny_model

GOLDENS = Path(__file__).parents[2] / "data" / "redrafter"
SETS = sorted(folder.name for folder in GOLDENS.iterdir())


@lru_cache
def golden(name):
    """The authors' arrays as tensors, what made them, and our drafter with their weights."""
    arrays = np.load(GOLDENS / name / "golden.npz")
    tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    summary = json.loads((GOLDENS / name / "summary.json").read_text())
    with torch.inference_mode(False):
        model = AutoModelForCausalLM.from_pretrained(GOLDENS / name / "llm", dtype=torch.float32)
    target = Target(model.eval())
    with tempfile.TemporaryDirectory() as folder:
        import_drafter(GOLDENS / name / "drafter", target).write(Path(folder))
        drafter = load_drafter_checkpoint(
            Path(folder),
            target,
            beam_width=summary["beam_width"],
            draft_length=summary["beam_length"] - 1,
        )
    return tensors, summary, target, drafter


def steps_of(name):
    tensors, summary, _, _ = golden(name)
    for i in range(summary["steps"]):
        prefix = f"step{i}/"
        yield {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def by_tokens(beams, scores):
    """Beams in one order, whichever the top-k left them in."""
    order = sorted(range(len(beams)), key=lambda i: beams[i].tolist())
    return beams[order], scores[order]


@pytest.mark.parametrize("name", SETS)
def test_beams_and_scores_equal_the_authors(name):
    _, _, _, drafter = golden(name)
    length = drafter.config.draft_length
    for step in steps_of(name):
        searched = drafter._search(step["init_tokens"], step["context"], length)
        beams, scores = trace_back(searched)
        for row in range(len(beams)):
            ours, our_scores = by_tokens(beams[row], scores[row, :, -1])
            theirs, their_scores = by_tokens(step["beams"][row, :, 1:], step["beam_scores"][row])
            assert torch.equal(ours, theirs)
            torch.testing.assert_close(our_scores, their_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the goldens lie on the CPU")
@torch.inference_mode()
def test_kernel_beams_equal_the_authors(kernel_device, monkeypatch):
    monkeypatch.setattr(dispatch, "KERNEL_DEVICES", {"cuda", "cpu"})
    test_beams_and_scores_equal_the_authors("greedy_b1_w1")


@pytest.mark.parametrize("name", SETS)
def test_root_distribution_equals_the_authors(name):
    tensors, _, _, drafter = golden(name)
    theirs = tensors["step0/draft_log_probs"]  # [B, M, C-1, V]
    first = drafter._search(tensors["step0/init_tokens"], tensors["step0/context"], 1)[0]
    # Column 0 of every beam was drawn from one distribution: that behind the root.
    for row in range(len(first.tokens)):
        expected = theirs[row, 0, 0, first.tokens[row]]
        torch.testing.assert_close(first.scores[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SETS)
def test_packed_trees_and_masks_equal_the_authors(name):
    for step in steps_of(name):
        tree, unpacker = pack_beams(step["beams"])
        assert torch.equal(tree.sizes, step["n_selected"])
        seen = ancestor_matrix(tree.parents)
        for row, size in enumerate(tree.sizes.tolist()):
            assert torch.equal(tree.tokens[row, :size], step["packed"][row, :size])
            assert torch.equal(tree.depth[row, :size], step["position_offsets"][row, :size])
            theirs = step["mask"][row, :size, step["input_ids"].shape[1] :][:, :size]
            assert torch.equal(seen[row, :size, :size], theirs)
        assert torch.equal(unpacker, step["unpacker"])


@pytest.mark.parametrize("name", SETS)
def test_verification_and_picked_tokens_equal_the_authors(name):
    _, summary, target, _ = golden(name)
    greedy = summary["mode"] == "greedy"
    for step in steps_of(name):
        packed, unpacker = pack_beams(step["beams"])
        tree = TokenTree.from_packed(packed)
        for row, ids in enumerate(step["input_ids"]):
            pads = int((ids != 0).nonzero()[0])
            prefix = ids[pads:]
            cache = target.new_cache(rows=1, capacity=len(prefix), tree_capacity=64)
            one = TokenTree(**{f: getattr(tree, f)[row : row + 1] for f in TokenTree.__slots__})
            with torch.inference_mode():
                last = target.prefill(prefix[None], [len(prefix)], cache)
                verified = target.verify(one, cache, Rows.first(1, target.device))
            torch.testing.assert_close(last.hidden[0], step["context"][row], rtol=1e-3, atol=1e-4)
            hidden = verified.hidden[0][unpacker[row]]
            torch.testing.assert_close(hidden, step["hidden"][row], rtol=1e-3, atol=1e-4)
            if greedy:
                picked = verified.logits[0].argmax(-1)
                assert torch.equal(picked[unpacker[row]], step["llm_tokens"][row])


@pytest.mark.parametrize("name", [name for name in SETS if name.startswith("greedy")])
def test_greedy_rounds_equal_the_authors(name):
    tensors, summary, target, drafter = golden(name)
    steps = list(steps_of(name))
    prompts = tensors["prompt"].tolist()
    session = Session(target, drafter, max_nodes=summary["beam_width"] * summary["beam_length"])
    gains = [[] for _ in prompts]
    texts = [list(prompt) for prompt in prompts]
    for emitted in session.stream(prompts, max_new_tokens=80):
        for e in emitted:
            texts[e.row] += e.tokens
            if e.nodes:
                gains[e.row].append(len(e.tokens))
    for row in range(len(prompts)):
        theirs = [int(step["n_accepted"][row]) + 1 for step in steps]
        assert gains[row][: len(theirs)] == theirs
        final = steps[-1]["next_input_ids"][row]
        final = final[int((final != 0).nonzero()[0]) :].tolist()
        assert texts[row][: len(final)] == final


@pytest.mark.parametrize("name", SETS)
def test_training_logits_and_loss_equal_the_authors(name):
    tensors, _, target, drafter = golden(name)
    if "train/loss" not in tensors:
        pytest.fail("every set holds a training step")
    ids, labels, theirs = (tensors[f"train/{k}"] for k in ("input_ids", "labels", "logits"))
    with torch.no_grad():
        hidden = target.model.base_model(ids).last_hidden_state
        length = theirs.shape[0]
        # Step i at position t reads token t + i; the authors' roll wraps round at the end, which the loss cuts off.
        embedded = torch.stack([target.embed(ids.roll(-i, 1)) for i in range(1, length + 1)])
        read = drafter.model(embedded.flatten(1, 2), hidden.flatten(0, 1))
        ours = drafter.head.logits(read).view_as(theirs)
    loss = torch.zeros(())
    for i in range(1, length + 1):
        real = slice(None, ids.shape[1] - i - 1)
        torch.testing.assert_close(
            ours[i - 1][:, real], theirs[i - 1][:, real], rtol=1e-3, atol=1e-4
        )
        logits = ours[i - 1][:, real].flatten(0, 1)
        loss += F.cross_entropy(logits, labels[:, i + 1 :].flatten(), ignore_index=-100)
    torch.testing.assert_close(loss, tensors["train/loss"], rtol=1e-4, atol=1e-4)


def drafter_for(target, seed, *, vocabulary=None, **settings):
    torch.manual_seed(seed)
    width = target.config.hidden_size
    shape = {
        "exit_dim": 2 * width,
        "min_prob": 0.0,
        "min_step_prob": 0.0,
        "trained_length": 8,
        **settings,
    }
    config = ReDrafterConfig(hidden_size=width, **shape)
    model = ReDrafterModel(config, target.config.vocab_size, vocabulary)
    return ReDrafter(target, model)


VARIANTS = {
    "paper": {},
    "authors": {"keep": "final", "top_rule": 50},
    "no rnn": {"rnn": False},
    "projected": {"exit_dim": 32, "residual_blocks": 3},
    "no blocks": {"residual_blocks": 0},
    "one block": {"residual_blocks": 1},
    "tied": {"tied_head": True, "exit_dim": 40},
    "lean": {"tied_head": True, "vocabulary": torch.arange(0, VOCABULARY, 2)},
    "own small head": {"vocabulary": torch.arange(5, 40)},
    "exits": {"min_prob": 0.02, "min_step_prob": 0.2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_transformers_in_every_variant(family):
    model = tiny_model(family, 1)
    target = Target(model)
    prompts = [random_prompt(length, length) for length in (4, 13, 1)]
    expected = [library_greedy(model, p, 20) for p in prompts]
    for i, (name, settings) in enumerate(VARIANTS.items()):
        drafter = drafter_for(target, i, beam_width=5, draft_length=3, **settings)
        for drafters in (drafter, MixedDrafter([drafter, LookupDrafter()])):
            written = Session(target, drafters, max_nodes=12).generate(prompts, max_new_tokens=20)
            assert written.tokens == expected, name


@pytest.mark.sampled
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("width", [1, 2, 7, 64])
@pytest.mark.parametrize("length", [2, 5, 8])
def test_tokens_equal_transformers_at_every_beam_width_and_length(width, length, batch):
    model = tiny_model("llama", 2)
    target = Target(model)
    prompts = [random_prompt(3 + 4 * row, row) for row in range(batch)]
    expected = [library_greedy(model, p, 18) for p in prompts]
    for keep in ("final", "expanded"):
        drafter = drafter_for(target, 3, beam_width=width, draft_length=length, keep=keep)
        for max_nodes in (1, 16, 200):
            written = Session(target, drafter, max_nodes=max_nodes).generate(
                prompts, max_new_tokens=18
            )
            assert written.tokens == expected


def test_expanded_nodes_contain_the_final_beams():
    target = Target(tiny_model("llama", 3))
    context = torch.randn(2, target.config.hidden_size, dtype=torch.float64)
    paths = {}
    for keep in ("final", "expanded"):
        drafter = drafter_for(target, 4, beam_width=4, draft_length=4, keep=keep)

        class State:
            hidden = context
            roots = torch.tensor([3, 9])
            rows = Rows.first(2, torch.device("cpu"))
            text = torch.zeros(2, 1, dtype=torch.int64)
            sampling = None

        proposals = drafter.draft(State, Budget(64, 8, torch.tensor([8, 8])))
        paths[keep] = [set(), set()]
        for row in range(2):
            whole = []
            for token, parent in zip(
                proposals.tokens[row].tolist(), proposals.parents[row].tolist(), strict=True
            ):
                whole.append((whole[parent] if parent >= 0 else ()) + (token,))
            paths[keep][row] = set(whole)
    for final, expanded in zip(paths["final"], paths["expanded"], strict=True):
        assert final < expanded


def test_teacher_forced_features_equal_step_by_step_drafting():
    """Teacher-forced features over positions equal those of a beam search that is forced along the same tokens."""
    target = Target(tiny_model("llama", 5))
    drafter = drafter_for(target, 6, draft_length=4, beam_width=1)
    tokens = torch.tensor([[7, 11, 3, 20]])
    context = torch.randn(1, target.config.hidden_size, dtype=torch.float64)
    with torch.no_grad():
        trained = drafter.model(target.embed(tokens.T), context)
        step = drafter.model.step
        state = step.initial_state(context)
        for i in range(4):
            part = step.context_part(context)
            state, features = step(target.embed(tokens[:, i]), state, context, part)
            torch.testing.assert_close(drafter.model.head_input(features), trained[i])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam_width": 0}, "beam_width: expected 1 to 64, got 0"),
        ({"beam_width": 65}, "beam_width: expected 1 to 64, got 65"),
        ({"draft_length": 0}, "draft_length: expected 1 to 64, got 0"),
        ({"min_prob": 1.5}, "min_prob: expected 0 to 1, got 1.5"),
        ({"keep": "all"}, "keep: expected 'final' or 'expanded', got 'all'"),
        ({"top_rule": 51}, "top_rule: expected 1 to 50 or None, got 51"),
        ({"exit_dim": 0}, "exit_dim: expected at least 1, got 0"),
        ({"beam_width": 2.5}, "beam_width: expected 1 to 64, got 2.5"),
        ({"beam_width": "4"}, "beam_width: expected 1 to 64, got 4"),
        ({"min_prob": float("nan")}, "min_prob: expected 0 to 1, got nan"),
    ],
)
def test_out_of_range_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        ReDrafterConfig(**{"hidden_size": 8, "exit_dim": 16, **settings})


def test_model_of_another_hidden_size_is_rejected():
    target = Target(tiny_model("llama"))
    config = ReDrafterConfig(hidden_size=8, exit_dim=16)
    with pytest.raises(ValueError, match="hidden_size: expected the target's 48, got 8"):
        ReDrafter(target, ReDrafterModel(config, VOCABULARY))


def test_draft_length_beyond_trained_length_warns():
    target = Target(tiny_model("llama"))
    with pytest.warns(UserWarning, match="draft_length: expected at most the 2 tokens"):
        drafter_for(target, 0, trained_length=2, draft_length=3)


@pytest.mark.parametrize("ids", [[3, 3, 4], [5, 4], [-1, 2], [60, 61]])
def test_invalid_draft_vocabulary_is_rejected(ids):
    config = ReDrafterConfig(hidden_size=8, exit_dim=16)
    with pytest.raises(ValueError, match="draft_vocabulary: expected"):
        ReDrafterModel(config, VOCABULARY, torch.tensor(ids))


def test_rows_that_end_early_do_not_affect_other_rows():
    model = tiny_model("qwen2", 4)
    prompts = [random_prompt(length, length) for length in (3, 12, 6, 9)]
    full = [library_greedy(model, p, 20) for p in prompts]
    eos = [full[0][0], full[2][3]]  # the first row ends with the token that prefill gives
    expected = [library_greedy(model, p, 20, eos) for p in prompts]
    target = Target(model)
    drafter = drafter_for(target, 0, beam_width=4, draft_length=3)
    for drafters in (drafter, MixedDrafter([drafter, LookupDrafter()])):
        written = Session(target, drafters).generate(prompts, max_new_tokens=20, eos_token_ids=eos)
        assert written.tokens == expected


def test_sessions_sharing_a_drafter_are_independent():
    model = tiny_model("llama", 6)
    target = Target(model)
    drafter = drafter_for(target, 1, beam_width=3, draft_length=3)
    prompts = [random_prompt(5, 1), random_prompt(8, 2)]
    expected = [library_greedy(model, p, 15) for p in prompts]
    texts = [[], []]
    first = Session(target, drafter).stream(prompts, max_new_tokens=15)
    for emitted in first:
        for e in emitted:
            texts[e.row] += e.tokens
        Session(target, drafter).generate([random_prompt(4, 3)], max_new_tokens=3)
    assert texts == expected


def test_model_of_another_vocabulary_size_is_rejected():
    target = Target(tiny_model("llama"))
    config = ReDrafterConfig(hidden_size=48, exit_dim=96)
    with pytest.raises(
        ValueError, match=f"vocabulary_size: expected the target's {VOCABULARY}, got 200"
    ):
        ReDrafter(target, ReDrafterModel(config, 200))
