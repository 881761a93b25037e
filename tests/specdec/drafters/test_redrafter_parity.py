"""ReDrafter against the authors' code: beams, trees, verification, rounds and training on their arrays."""

import json
import math
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from specdec.checkpoints import import_drafter, load_drafter_checkpoint
from specdec.drafters.parts.beams import trace_back
from specdec.drafters.redrafter import Extent
from specdec.model.cache import Rows
from specdec.model.target import Target
from specdec.session import Session
from specdec.tree import TokenTree
from specdec_kernels import ancestor_matrix, dispatch, pack_beams

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
    config = drafter.config
    extent = Extent(config.beam_width, config.draft_length, -math.inf, 0.0)
    for step in steps_of(name):
        searched = drafter._search(step["init_tokens"], step["context"], extent)
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
    extent = Extent(drafter.config.beam_width, 1, -math.inf, 0.0)
    first = drafter._search(tensors["step0/init_tokens"], tensors["step0/context"], extent)[0]
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
    most = summary["beam_width"] * summary["beam_length"]
    session = Session(target, drafter, max_nodes=most, guard=False)
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
