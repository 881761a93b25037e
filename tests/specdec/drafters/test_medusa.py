"""Medusa's trees: the best paths of independent heads, static ones, and how a draft is cut."""

import itertools
import math

import pytest
import torch

from every_drafter import medusa, mixed_medusa
from specdec.decode import pack
from specdec.drafters import Budget
from specdec.drafters.medusa import MedusaConfig, MedusaDrafter, MedusaModel
from specdec.drafters.parts.medusa_trees import TREES, Paths, contenders, likeliest
from specdec.drafters.protocol import DraftCost
from specdec.model.target import Target
from specdec.pickers import PathPicker
from specdec.sampling import Sampling
from specdec.session import Session
from specdec_kernels import pick_tokens
from tiny import (
    FAMILIES,
    SEED,
    VOCABULARY,
    library_greedy,
    library_sampled,
    random_prompt,
    tiny_model,
)

CPU = torch.device("cpu")


def heads_saying(batch, heads, ranks, seed, levels=None):
    """Log-probabilities in order; of few levels, so that many paths are equal."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(batch, heads, ranks, generator=generator)
    if levels:
        drawn = (drawn * levels).round() / levels
    return -drawn.mul(4).sort(-1).values


def best_paths(log_probs, nodes):
    """The best of all paths there are, one after the other."""
    heads, ranks = log_probs.shape
    every = [
        path for length in range(1, heads + 1) for path in itertools.product(range(ranks), repeat=length)
    ]  # fmt: skip
    score = {path: sum(log_probs[i, rank] for i, rank in enumerate(path)) for path in every}
    return sorted(every, key=lambda path: (-round(float(score[path]), 5), len(path), path))[:nodes]


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize(("nodes", "heads", "ranks"), [(1, 3, 4), (5, 1, 9), (9, 3, 4), (31, 3, 5)])
def test_likeliest_nodes_are_the_best_of_all_paths(nodes, heads, ranks, levels):
    log_probs = heads_saying(3, heads, ranks, nodes, levels)
    paths = contenders(nodes, ranks, heads)
    found = likeliest(
        Paths.of(paths, heads=heads, ranks=ranks, device=CPU), log_probs.float(), nodes
    )
    for row in range(3):
        written = []
        for last, parent in zip(found.last[row].tolist(), found.parents[row].tolist(), strict=True):
            above = () if parent < 0 else written[parent]  # every parent comes before its children
            assert last // ranks == len(above)
            written.append((*above, last % ranks))
        assert written == best_paths(log_probs[row], nodes)
        assert (found.scores[row].diff() <= 0).all()


def test_every_contender_can_be_chosen_and_no_other_path():
    paths = set(contenders(11, 4, 3))
    for path in itertools.product(range(4), repeat=2):
        beside = [q for length in (1, 2) for q in itertools.product(range(4), repeat=length)]
        better = [q for q in beside if all(a <= b for a, b in zip(q, path, strict=False))]
        assert (path in paths) == (len(better) <= 11)


def test_certain_tokens_keep_their_parents():
    # All of the probability lies on one path: its nodes have the same score, and a token's may round to above zero.
    log_probs = torch.full((1, 4, 5), -math.inf)
    log_probs[..., 0] = 1e-8
    paths = Paths.of(contenders(7, 5, 4), heads=4, ranks=5, device=CPU)
    found = likeliest(paths, log_probs, 7)
    assert found.parents[0, :4].tolist() == [-1, 0, 1, 2]
    assert found.scores[0].tolist() == [0.0] * 4 + [-math.inf] * 3


def test_named_trees_are_the_authors_sizes():
    default = TREES["mc_sim_7b_63"]
    assert len(set(default)) == 63
    lengths = [sum(len(path) == length for path in default) for length in (1, 2, 3, 4)]
    assert lengths == [10, 28, 23, 2]
    assert len(set(TREES["small_13"])) == 13


class Row:
    """What a draft asks of a state, for one row that begins."""

    def __init__(self, target):
        torch.manual_seed(0)
        self.hidden = torch.randn(1, target.config.hidden_size, dtype=target.dtype)
        self.sampling, self.memory = None, {}
        self.rows = type("Rows", (), {"ids": torch.tensor([0]), "host": [0]})
        self.text = type("Text", (), {"ids": torch.zeros(1, 1, dtype=torch.int64)})


def budget(nodes, depth, **prices):
    return Budget(nodes, depth, torch.tensor([depth]), **prices)


@pytest.fixture
def target():
    return Target(tiny_model("llama", dtype=torch.float32))


def test_draft_is_cut_by_nodes_depth_and_price(target):
    drafter, state = medusa(target, min_prob=None), Row(target)
    free = drafter.draft(state, budget(40, 10))
    assert free.tokens.shape == (1, 39) and free.valid.all()
    few = drafter.draft(state, budget(6, 10))
    assert torch.equal(few.tokens, free.tokens[:, :5]) and torch.equal(
        few.scores, free.scores[:, :5]
    )
    flat = drafter.draft(state, budget(40, 1))
    assert (flat.parents == -1).all()
    least = float(free.scores[0, 7].detach().exp()) * drafter.calibration.share
    priced = drafter.draft(state, budget(40, 10, node_price=least * 1.0001))
    assert priced.valid.sum() == 7
    assert drafter.draft(state, budget(40, 0)).tokens.shape == (1, 0)
    assert drafter.draft(state, budget(1, 3)).tokens.shape == (1, 0)
    cost = {drafter: DraftCost(0.5, 1.0)}
    assert drafter.draft(state, budget(9, 3, costs=cost)).spent == 0.5
    assert drafter.draft(state, budget(9, 0, costs=cost)).spent == 0


def test_static_tree_is_pruned_only_if_min_prob_is_set(target):
    state, prices = Row(target), {"node_price": 0.9}
    static = medusa(target, heads=4, tree="small_13", min_prob=None)
    whole = static.draft(state, budget(20, 10, **prices))
    assert whole.valid.all() and whole.tokens.shape == (1, 13)
    assert static.draft(state, budget(20, 2, **prices)).tokens.shape == (1, 8)
    asked = medusa(
        target, heads=4, tree="small_13", min_prob=float(whole.scores[0, 1].detach().exp())
    )
    assert 0 < asked.draft(state, budget(20, 10, **prices)).valid.sum() < 13
    # What there is no room for goes by its score.
    tree = pack(torch.tensor([3]), whole, budget(6, 10))
    assert tree.sizes.tolist() == [6]


def test_lean_heads_draft_only_their_vocabulary_and_no_more_than_it_has(target):
    ids = torch.tensor([4, 9, 30])
    drafter = medusa(target, ids, output="projected", ranks=10)
    proposals = drafter.draft(Row(target), budget(30, 9))
    assert set(proposals.tokens[0].tolist()) <= {4, 9, 30}
    assert drafter.ranks == 3
    with pytest.raises(
        ValueError, match="tree: expected ranks below the 3 tokens of a head, got 3"
    ):
        medusa(target, ids, tree=[[3], [0], [1], [2]])


def test_heads_equal_one_another_however_they_are_read(target):
    """A projection that changes nothing, the target's head, and a copy of it of their own say the same."""
    drafters = [medusa(target, output=output) for output in ("own", "projected", "target")]
    with torch.no_grad():
        for drafter, own in zip(
            drafters, (target.embedding.new_tensor(0), torch.eye(48), None), strict=True
        ):
            for head, first in zip(drafter.model.heads, drafters[0].model.heads, strict=True):
                head.blocks.load_state_dict(first.blocks.state_dict())
                if own is not None:
                    weight = target.model.lm_head.weight if own.ndim == 0 else own
                    head.output.weight.copy_(weight)
    said = [drafter.draft(Row(target), budget(20, 9)) for drafter in drafters]
    for other in said[1:]:
        assert torch.equal(other.tokens, said[0].tokens)
        torch.testing.assert_close(other.scores, said[0].scores, atol=1e-5, rtol=0)


NEW = 16
# Ragged.
PROMPTS = [random_prompt(5, 1) * 3, [7], random_prompt(9, 2) * 2]


@pytest.mark.sampled
@pytest.mark.parametrize("how", ["greedy", "sampled"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("make", [medusa, mixed_medusa], ids=lambda make: make.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_transformers(family, make, rows, how):
    model = tiny_model(family)
    greedy, picker = how == "greedy", None
    if greedy:
        expected = [library_greedy(model, p, NEW) for p in PROMPTS[:rows]]
    else:
        expected = [library_sampled(model, p, NEW, i) for i, p in enumerate(PROMPTS[:rows])]
        picker = PathPicker(Sampling(SEED, torch.arange(rows)))
    target = Target(model)
    session = Session(target, make(target), max_nodes=24)
    written = session.generate(PROMPTS[:rows], max_new_tokens=NEW, picker=picker)
    assert written.tokens == expected
    end = expected[0][NEW // 2]
    cut = [text[: text.index(end) + 1] if end in text else text for text in expected]
    again = session.generate(PROMPTS[:rows], max_new_tokens=NEW, eos_token_ids=[end], picker=picker)
    assert again.tokens == cut


@pytest.mark.parametrize("make", [medusa, mixed_medusa], ids=lambda make: make.__name__)
def test_some_drafts_are_accepted(target, make):
    session = Session(target, make(target), max_nodes=40, guard=False)
    assert session.generate(PROMPTS, max_new_tokens=40).metrics.tokens_per_round > 1.1


def test_exact_bfloat16_text_does_not_depend_on_the_heads():
    target = Target(tiny_model("llama", dtype=torch.bfloat16), exact=True)
    plain = Session(target, "plain").generate(PROMPTS, max_new_tokens=NEW)
    for make in (medusa, mixed_medusa):
        assert (
            Session(target, make(target)).generate(PROMPTS, max_new_tokens=NEW).tokens
            == plain.tokens
        )


@torch.inference_mode()
def test_ranks_use_the_targets_noise_when_sampling():
    """A head that knows the target's distribution ranks the token first that will be drawn at its place."""
    target = Target(tiny_model("llama"))
    drafter, state = medusa(target, output="target", blocks=0, heads=3), Row(target)
    logits, right = target.logits(state.hidden), 0
    for position in range(20):
        state.sampling = Sampling(SEED, torch.tensor([5]), temperature=0.9)
        state.position_after = lambda depth, at=position: torch.tensor([at + depth])
        _, ids = drafter._best_tokens(state, 3)
        drawn = [
            pick_tokens(
                logits,
                seed=SEED,
                streams=torch.tensor([5]),
                positions=torch.tensor([position + depth]),
                temperature=0.9,
            )
            for depth in range(3)
        ]
        right += sum(int(d) == i for d, i in zip(drawn, ids[0, :, 0].tolist(), strict=True))
    assert right >= 57  # of 60: the 32 likeliest are considered


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"heads": 0}, "heads: expected 1 to 16, got 0"),
        ({"blocks": 17}, "blocks: expected 0 to 16, got 17"),
        ({"ranks": 65}, "ranks: expected 1 to 64, got 65"),
        ({"draft_length": 5}, "draft_length: expected 1 to 4, got 5"),
        ({"min_prob": 1.5}, "min_prob: expected above 0 to 1, got 1.5"),
        ({"output": "tied"}, "output: expected one of own, projected, target, got 'tied'"),
        ({"head_weights": [1, 1]}, r"head_weights: expected 4 numbers from 0 on, got \[1, 1\]"),
        ({"tree": "big"}, "tree: expected likeliest, mc_sim_7b_63, small_13 or paths of ranks, got 'big'"),
        ({"tree": []}, "tree: expected at least one path, got none"),
        ({"tree": [[0], [1, 0]]}, r"tree: expected the path \[1\], which \[1, 0\] continues, got none"),
        ({"tree": [[0], [-1]]}, r"tree: expected paths of ranks from 0 on, got \[-1\]"),
        ({"tree": [[0], [0]]}, r"tree: expected every path once, got \[0\] twice"),
        ({"tree": [[0]], "heads": 4, "draft_length": 0}, "draft_length: expected 1 to 4, got 0"),
        ({"tree": [[0], [0, 0], [0, 0, 0]], "heads": 2}, "tree: expected paths of at most 2 ranks, one per head, got one of 3"),
        ({"tree": [[64]]}, "tree: expected ranks of at most 63, got 64"),
        ({"tree": [0, 1]}, r"tree: expected paths of ranks, got \[0, 1\]"),
    ],
)  # fmt: skip
def test_error_names_the_field_that_is_out_of_range(shape, message):
    with pytest.raises(ValueError, match=message):
        MedusaConfig(48, **shape)


def test_heads_of_another_target_are_rejected(target):
    for config, vocabulary, message in (
        (MedusaConfig(47), VOCABULARY, "hidden_size: expected the target's 48, got 47"),
        (MedusaConfig(48), 60, "vocabulary_size: expected the target's 61, got 60"),
    ):
        with pytest.raises(ValueError, match=message):
            MedusaDrafter(target, MedusaModel(config, vocabulary))
