import pytest
import torch

from specdec.drafters import Budget, SuffixConfig, SuffixDrafter, load_drafter
from specdec.drafters.parts.calibration import calibration_of
from specdec.model.target import Target
from specdec.session import Session
from specdec.state import State
from specdec.text import Text
from tiny import library_greedy, random_prompt, tiny_model

ODDS = torch.tensor(calibration_of("suffix").tables["odds"], dtype=torch.float64)


def state_of(texts, memory=None):
    """Rows whose last token is the root."""
    target = Target(tiny_model("llama"))
    cache = target.new_cache(rows=len(texts), capacity=50, tree_capacity=8)
    cache.set_lengths([len(t) - 1 for t in texts])
    text = Text([list(ids) for ids in texts], [30] * len(texts), margin=9, device=target.device)
    state = State(cache, text, eos_token_ids=frozenset())
    if memory is not None:
        state.memory = memory
    return state


def drafter_of(**config):
    return SuffixDrafter(SuffixConfig(**{"min_prob": 1e-9} | config))


def paths(proposals, row=0):
    """Per path its probability."""
    found, every = {}, []
    fields = (proposals.tokens, proposals.parents, proposals.valid, proposals.scores)
    for token, parent, valid, score in zip(*(field[row].tolist() for field in fields), strict=True):
        every.append((*every[parent], token) if parent >= 0 else (token,))
        if valid:
            found[every[-1]] = torch.tensor(score).exp().item()
    return found


def draft(drafter, state, depth=15, nodes=64):
    return drafter.draft(state, Budget(nodes, depth, torch.full((len(state.rows.host),), depth)))


def drafted(texts, depth=15, nodes=64, **config):
    drafter, state = drafter_of(**config), state_of(texts)
    drafter.start(state)
    proposals = draft(drafter, state, depth, nodes)
    return [paths(proposals, row) for row in range(len(texts))]


def test_longer_and_later_matches_are_likelier():
    (found,) = drafted([[7, 8, 9, 1, 5, 9, 2, 6, 9, 3, 7, 8, 9]], length=1, recency=0.5)
    assert sorted(found, key=found.get, reverse=True) == [(1,), (3,), (2,)]
    weights = (ODDS[[2, 0, 0]] / torch.tensor([1, 2, 4])).tolist()
    for token, weight in zip((1, 3, 2), weights, strict=True):
        assert found[token,] == pytest.approx(weight / (sum(weights) + 1), rel=1e-5)


def test_longer_matches_along_a_path_raise_the_probability():
    (found,) = drafted([[1, 2, 3, 4, 1]], length=3)
    steps = [found[2,], found[2, 3] / found[2,], found[2, 3, 4] / found[2, 3]]
    assert steps == pytest.approx((ODDS[:3] / (ODDS[:3] + 1)).tolist(), rel=1e-5)


def test_repetitions_are_continued():
    (found,) = drafted([[4, 4, 4]], length=5)
    assert max(found, key=len) == (4,) * 5


def test_nothing_is_proposed_without_a_match_or_without_room():
    assert drafted([[1, 2, 3]]) == [{}]
    assert drafted([[1, 2, 1, 2, 1]], depth=0) == [{}]
    assert len(drafted([[1, 2, 3, 1, 4, 5, 1]], nodes=4)[0]) == 3


def test_rows_draft_from_each_other_but_not_from_their_own_end():
    first, second = drafted([[1, 2, 3, 8], [9, 5, 2]])
    assert first == {} and max(second, key=len) == (3, 8)


def test_earlier_texts_of_a_session_are_used():
    memory, drafter = {}, drafter_of()
    state = state_of([[1, 2, 3, 4]], memory)
    drafter.start(state)
    state.text.hand_out(0, [5, 6])  # written after the last draft
    later = state_of([[7, 3]], memory)
    drafter.start(later)
    assert max(paths(draft(drafter, later)), key=len) == (4, 5, 6)
    elsewhere = state_of([[7, 3]])
    drafter.start(elsewhere)
    assert paths(draft(drafter, elsewhere)) == {}


def test_other_texts_have_less_weight_than_the_same_text():
    memory, drafter = {}, drafter_of(length=1, recency=1.0, others=0.5)
    drafter.start(state_of([[1, 3, 8]], memory))
    state = state_of([[2, 3, 7, 3]], memory)
    drafter.start(state)
    found = paths(draft(drafter, state))
    assert found[7,] == pytest.approx(2 * found[8,])


def test_continued_text_is_read_from_its_first_new_token():
    memory, drafter = {}, drafter_of()
    for text in ([1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 9, 2]):  # goes on, then rolls back
        drafter.start(state_of([text], memory))
    assert memory[drafter].young.size == 1 + 7
    state = state_of([[8, 3]], memory)
    drafter.start(state)
    assert max(paths(draft(drafter, state)), key=len)[0] == 9  # the newest way on


def test_oldest_texts_are_dropped_beyond_the_memory_limit():
    memory, drafter = {}, drafter_of(memory=8)
    for text in ([1, 2, 3, 4, 5], [11, 12, 13, 14, 15]):
        drafter.start(state_of([text], memory))
    state = state_of([[21, 3]], memory)
    drafter.start(state)
    assert memory[drafter].old.size + memory[drafter].young.size <= 2 + 8
    assert paths(draft(drafter, state)) == {}
    state = state_of([[22, 13]], memory)
    drafter.start(state)
    assert max(paths(draft(drafter, state)), key=len) == (14, 15)


def test_continued_long_text_is_not_read_again():
    memory, drafter, text = {}, drafter_of(memory=8), list(range(20))
    for length in (10, 12, 14):
        drafter.start(state_of([text[:length]], memory))
        assert memory[drafter].young.size == 1 + length
        assert memory[drafter].old.size == 1


@pytest.mark.parametrize("rows", [1, 3])
def test_tokens_equal_transformers_over_several_streams(rows):
    target = Target(tiny_model("llama", dtype=torch.float32))
    session = Session(target, "suffix")
    prompts = [random_prompt(8, seed) for seed in range(rows)]
    for _ in range(3):
        written = session.generate(prompts, max_new_tokens=20)
        assert written.tokens == [library_greedy(target.model, p, 20) for p in prompts]
        prompts = [p + w[:11] for p, w in zip(prompts, written.tokens, strict=True)]


def test_copies_of_a_prompt_are_stored_once():
    target = Target(tiny_model("llama", dtype=torch.float32))
    drafter = load_drafter("suffix", target)
    prompt = random_prompt(8, 1)
    written = Session(target, drafter).generate([prompt], max_new_tokens=12, copies=3)
    assert written.tokens == [library_greedy(target.model, prompt, 12)] * 3


@pytest.mark.parametrize(
    "change",
    [
        {"places": 0},
        {"length": 65},
        {"recency": 0.0},
        {"others": 0.0},
        {"min_prob": 1.5},
        {"memory": 0},
    ],
)
def test_error_names_the_out_of_range_setting(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}: expected"):
        SuffixConfig(**change)
