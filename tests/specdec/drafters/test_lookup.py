import pytest
import torch

from specdec.drafters import Budget, LookupConfig, LookupDrafter, load_drafter
from specdec.drafters.lookup import matches
from specdec.drafters.mixed import MixedDrafter
from specdec.drafters.parts.calibration import calibration_of
from specdec.model.target import Target
from specdec.state import State
from specdec.text import Text
from tiny import tiny_model


def state_of(texts):
    """Rows whose last token is the root."""
    target = Target(tiny_model("llama"))
    cache = target.new_cache(rows=len(texts), capacity=50, tree_capacity=8)
    cache.set_lengths([len(t) - 1 for t in texts])
    text = Text([list(ids) for ids in texts], [30] * len(texts), margin=9, device=target.device)
    for row, ids in enumerate(texts):
        text.ids[row, len(ids) :] = ids[-1]  # stale tokens that would match
    return State(cache, text, eos_token_ids=frozenset())


def draft(texts, depth=20, **config):
    config = {"min_prob": 1e-9} | config
    proposals = LookupDrafter(LookupConfig(**config)).draft(
        state_of(texts), Budget(64, depth, torch.full((len(texts),), depth))
    )
    chains = []
    for row in range(len(texts)):
        beams = {}
        for token, valid, source in zip(
            proposals.tokens[row], proposals.valid[row], proposals.source[row], strict=True
        ):
            if valid:
                beams.setdefault(int(source), []).append(int(token))
        chains.append(list(beams.values()))
    return chains, proposals


def test_longest_match_comes_first_then_the_latest():
    #        0  1  2  3  4  5  6  7  8  9 10
    text = [7, 8, 9, 1, 5, 9, 2, 6, 9, 3, 7, 8, 9]
    ((first, second, third),), _ = draft([text])
    assert first == [1, 5, 9, 2, 6, 9, 3, 7, 8, 9]  # three tokens agree
    assert second == [3, 7, 8, 9]  # one agrees, the latest
    assert third == [2, 6, 9, 3, 7, 8, 9]


def test_proposals_end_at_the_last_known_token():
    chains, _ = draft([[4, 4, 4]])
    assert chains == [[[4], [4, 4]]]


def test_nothing_is_proposed_without_a_match():
    chains, proposals = draft([[1, 2, 3], [5, 6, 5]])
    assert chains == [[], [[6, 5]]]
    assert proposals.tokens.shape == proposals.valid.shape


def test_depth_and_places_limit_the_proposals():
    chains, _ = draft([[1, 2, 1, 2, 1, 2, 1]], depth=2, places=2)
    assert chains == [[[2, 1], [2, 1]]]
    chains, _ = draft([[1, 2, 1, 2, 1]], depth=0)
    assert chains == [[]]


def test_scores_decrease_along_a_path_and_min_prob_prunes_nodes():
    text = [[1, 2, 3, 4, 5, 6, 1]]
    _, proposals = draft(text)
    scores = proposals.scores[0][proposals.valid[0]]
    assert (scores.diff() < 0).all()
    assert scores[0].exp().item() == pytest.approx(calibration_of("lookup").tables["follows"][0])
    (kept,), _ = draft(text, min_prob=0.1)
    assert kept == [[2, 3]]  # 0.24, then 0.24 * 0.55, then under a tenth


def test_match_lengths_are_counted_backwards_to_the_first_token():
    text = torch.tensor([[3, 1, 2, 3, 1, 2, 3]])
    assert matches(text, torch.tensor([[6]]), 8).tolist() == [[1, 0, 0, 4, 0, 0, 7]]


@pytest.mark.parametrize(
    "change", [{"places": 0}, {"length": 65}, {"min_prob": 0.0}, {"min_prob": 1.5}]
)
def test_error_names_the_out_of_range_setting(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}: expected"):
        LookupConfig(**change)


def test_drafter_names_load_and_unknown_names_are_rejected():
    assert isinstance(load_drafter("lookup+plain", Target(tiny_model("llama"))), MixedDrafter)
    with pytest.raises(ValueError, match="drafter: expected one of plain, lookup"):
        load_drafter("nothing", Target(tiny_model("llama")))
    with pytest.raises(ValueError, match="at least one"):
        MixedDrafter([])
