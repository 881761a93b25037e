import copy
import itertools
import math

import pytest
import torch

from specdec.drafters import Budget
from specdec.drafters.parts.calibration import calibration_of
from specdec.drafters.recycling import UNKNOWN, RecyclingConfig, RecyclingDrafter, template
from specdec.model.passed import Verified
from specdec.model.target import Target
from specdec.session import Session
from specdec.state import State
from specdec.text import Text
from specdec.tree import TokenTree
from tiny import VOCABULARY, tiny_model

RIGHT = calibration_of("recycling").tables["right"]


@pytest.mark.parametrize("nodes", [1, 7, 40])
def test_template_holds_the_likeliest_paths_and_their_parents(nodes):
    shape = template(RIGHT[:4], 3, nodes, -math.inf)
    every = [
        sum(math.log(RIGHT[rank]) for rank in path)
        for length in (1, 2, 3)
        for path in itertools.product(range(4), repeat=length)
    ]
    assert sorted(shape.scores.tolist(), reverse=True) == pytest.approx(
        sorted(every, reverse=True)[:nodes]
    )
    ranks = torch.cat(shape.ranks).tolist()
    for at, parent in enumerate(shape.parents.tolist()):
        assert parent < at
        above = 0.0 if parent < 0 else shape.scores[parent].item()
        assert shape.scores[at].item() == pytest.approx(above + math.log(RIGHT[ranks[at]]))


def test_template_leaves_out_nodes_below_the_least_score():
    kept = template(RIGHT, 2, 99, math.log(RIGHT[1] - 1e-6))
    assert [x.tolist() for x in kept.ranks] == [[0, 1], [0]]  # 0.46, 0.13; 0.46 squared
    assert template(RIGHT, 2, 99, 0.0).ranks == []


def state_of(roots):
    """Rows whose text is one prompt token and a root."""
    target = Target(tiny_model("llama"))
    cache = target.new_cache(rows=len(roots), capacity=30, tree_capacity=8)
    cache.set_lengths([1] * len(roots))
    text = Text([[0, root] for root in roots], [20] * len(roots), margin=9, device=target.device)
    state = State(cache, text, eos_token_ids=frozenset())
    state._roots = 1
    return state


def drafter_of(state, **config):
    drafter = RecyclingDrafter(RecyclingConfig(**config), vocabulary_size=VOCABULARY)
    drafter.start(state)
    return drafter


def paths(proposals, row):
    tokens, parents = proposals.tokens[row].tolist(), proposals.parents[row].tolist()
    found = []
    for at in proposals.valid[row].nonzero().flatten().tolist():
        path, node = [], at
        while node >= 0:
            path.insert(0, tokens[node])
            node = parents[node]
        found.append(tuple(path))
    return found


def test_draft_reads_a_tree_of_successors_from_the_table():
    state = state_of([3, 4, 9])
    drafter = drafter_of(state, ranks=2, length=2, min_prob=1e-9)
    table = state.memory[drafter]
    table[3], table[5], table[6] = (torch.tensor(x).int() for x in ([5, 6], [7, 8], [3, UNKNOWN]))
    table[4] = torch.tensor([3, UNKNOWN])
    proposals = drafter.draft(state, Budget(16, 8, torch.tensor([8, 8, 8])))
    assert sorted(paths(proposals, 0)) == [(5,), (5, 7), (5, 8), (6,), (6, 3)]
    assert sorted(paths(proposals, 1)) == [(3,), (3, 5), (3, 6)]
    assert paths(proposals, 2) == []  # nothing is known


def test_draft_depth_is_limited_by_the_budget():
    state = state_of([3])
    drafter = drafter_of(state, ranks=1, length=5, min_prob=1e-9)
    state.memory[drafter][:] = 3
    assert drafter.draft(state, Budget(16, 2, torch.tensor([2]))).tokens.shape == (1, 2)
    assert drafter.draft(state, Budget(1, 0, torch.tensor([0]))).tokens.shape == (1, 0)


def test_table_keeps_the_best_ranks_of_the_last_node_with_a_token_and_ignores_padding():
    state = state_of([3])
    drafter = drafter_of(state, ranks=2, min_prob=0.01)
    tree = TokenTree.chain(torch.tensor([[3, 5, 5, 3]]))
    tree.sizes[0] = 3  # the fourth node is padding
    logits = torch.full((1, 4, VOCABULARY), -9.0)
    for node, (best, second) in enumerate([(10, 11), (12, 13), (14, 15), (16, 17)]):
        logits[0, node, best], logits[0, node, second] = 2.0, 1.0
    drafter.observe(state, tree, None, Verified(logits, logits))
    table = state.memory[drafter]
    assert table[3].tolist() == [10, 11]
    assert table[5].tolist() == [14, 15]
    assert table[6].tolist() == [UNKNOWN, UNKNOWN]


def test_table_is_kept_for_the_whole_session():
    target = Target(tiny_model("llama"))
    drafter = RecyclingDrafter(vocabulary_size=VOCABULARY)
    session = Session(target, drafter)
    session.generate([[1, 2, 3]], max_new_tokens=12)
    first = session.memory[drafter].clone()
    assert (first != UNKNOWN).any()
    again = session.generate([[1, 2, 3]], max_new_tokens=12)
    fresh = Session(target, drafter).generate([[1, 2, 3]], max_new_tokens=12)
    assert again.tokens == fresh.tokens
    assert again.metrics.rounds < fresh.metrics.rounds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": 9}, "ranks: expected 1 to 8, got 9"),
        ({"length": 0}, "length: expected 1 to 16, got 0"),
        ({"min_prob": 2}, "min_prob: expected above 0 to 1, got 2"),
    ],
)
def test_error_names_the_out_of_range_setting(change, message):
    with pytest.raises(ValueError, match=message):
        RecyclingConfig(**change)


def test_table_keeps_no_more_ranks_than_there_are_tokens():
    assert RecyclingDrafter(vocabulary_size=VOCABULARY).ranks == 8
    assert RecyclingDrafter(vocabulary_size=3).ranks == 3


def test_table_is_kept_when_a_cache_moves_to_another_session():
    target = Target(tiny_model("llama"))
    drafter = RecyclingDrafter(vocabulary_size=VOCABULARY)
    first = Session(target, drafter)
    first.generate([[1, 2, 3]], max_new_tokens=12)
    assert Session(target, drafter, cache=first.cache).memory is first.memory
    assert copy.deepcopy(first.cache).memory == {}
    assert Session(target, drafter).memory == {}
