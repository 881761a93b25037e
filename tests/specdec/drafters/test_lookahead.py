import pytest
import torch

from specdec.drafters import load_drafter
from specdec.drafters.lookahead import LookaheadConfig, LookaheadDrafter
from specdec.drafters.parts.lookahead_window import Row, level_sizes, window
from specdec.model.target import Target
from specdec.session import Session
from tiny import tiny_model

CONFIG = LookaheadConfig(window=3, ngram=4, guesses=2, text_ngrams=True)


def test_levels_fill_one_per_round_until_the_window_is_full():
    row = Row(CONFIG, [5, 6, 7])
    for filled in range(1, CONFIG.ngram):
        assert list(map(len, row.levels)) == level_sizes(CONFIG, filled)
        assert row.full == (filled == 3)
        if not row.full:
            row.advance(1, list(range(10 * filled, 10 * filled + len(row.levels[-1]))))
    assert level_sizes(CONFIG, 3) == [2, 3, 3]


def test_full_window_yields_one_ngram_per_column_and_advances():
    row = Row(CONFIG, [9])
    row.levels = [[1, 2], [10, 11, 12], [20, 21, 22]]
    row.advance(0, [30, 31, 32])
    assert {key: list(ngrams) for key, ngrams in row.pool.items()} == {
        0: [(10, 20, 30)],
        1: [(11, 21, 31)],
        2: [(12, 22, 32)],
    }
    assert row.levels == [[11, 12], [20, 21, 22], [30, 31, 32]]


def test_pool_keeps_the_latest_ngrams_of_a_key():
    row = Row(CONFIG, [9])
    for ngram in [(1, 1, 1), (2, 2, 2), (1, 1, 1), (3, 3, 3)]:
        row.add(7, ngram)
    assert row.guesses(7) == [(3, 3, 3), (1, 1, 1)]
    assert row.guesses(8) == []


def test_text_ngrams_enter_the_pool_once_each():
    row = Row(CONFIG, [9])
    row.read([1, 2, 3])
    assert row.pool == {}
    row.read([1, 2, 3, 4, 5])
    row.read([1, 2, 3, 4, 5, 6])
    assert [list(row.pool[key]) for key in (1, 2, 3)] == [[(2, 3, 4)], [(3, 4, 5)], [(4, 5, 6)]]


def test_a_window_node_sees_its_column_and_the_first_level_before_it():
    depth, sees = window([2, 3, 3], torch.device("cpu"))
    assert depth.tolist() == [1, 2, 1, 2, 3, 2, 3, 4]
    seen = [row.nonzero().flatten().tolist() for row in sees]
    assert seen == [[0], [0, 1], [2], [0, 3], [0, 1, 4], [2, 5], [0, 3, 6], [0, 1, 4, 7]]
    assert torch.equal(sees, sees.tril())
    assert torch.equal(sees.sum(1) - sees.diagonal().int() + 1, depth)  # as many before it


def test_first_window_is_the_same_for_the_same_prompt():
    assert Row(CONFIG, range(100)).levels == Row(CONFIG, range(100)).levels
    assert set(Row(CONFIG, [3, 4]).levels[0]) <= {3, 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window: expected 1 to 128, got 0"),
        ({"ngram": 2}, "ngram: expected 3 to 16, got 2"),
        ({"guesses": 65}, "guesses: expected 1 to 64, got 65"),
        ({"min_prob": 0.0}, "min_prob: expected above 0"),
        ({"window": 60, "ngram": 8}, "window: expected a window of fewer than 256 nodes"),
    ],
)
def test_error_names_the_out_of_range_setting(change, message):
    with pytest.raises(ValueError, match=message):
        LookaheadConfig(**change)


def test_widest_window_is_counted_while_it_fills_too():
    config = LookaheadConfig(window=1, ngram=16)
    assert config.side_nodes == max(sum(level_sizes(config, f)) for f in range(1, 16))
    assert config.side_nodes > sum(level_sizes(config, 15))


def test_tree_and_window_share_the_node_limit():
    target = Target(tiny_model("llama"))
    drafter = LookaheadDrafter(LookaheadConfig(window=7, ngram=5, guesses=7))
    Session(target, drafter, max_nodes=256 - drafter.side_nodes)
    with pytest.raises(ValueError, match=r"max_nodes: expected at most 2\d\d beside the 2\d side"):
        Session(target, drafter, max_nodes=256)


def test_sizes_are_given_in_the_name():
    target = Target(tiny_model("llama"))
    config = load_drafter("lookahead:7/5/7", target).config
    assert (config.window, config.ngram, config.guesses) == (7, 5, 7)
    for name in ("lookahead:7/5", "lookahead:a/b/c", "lookahead:-1/5/7"):
        with pytest.raises(ValueError, match="lookahead: expected W/N/G, such as 7/5/7, got"):
            load_drafter(name, target)
    with pytest.raises(
        ValueError, match=r"drafter: expected lookahead\[:W/N/G\], got 'lookahead:'"
    ):
        load_drafter("lookahead:", target)
    with pytest.raises(ValueError, match="drafter: expected plain, got 'plain:7'"):
        load_drafter("plain:7", target)


def test_union_of_two_drafters_with_side_nodes_is_rejected():
    with pytest.raises(ValueError, match="expected one that asks for side nodes"):
        load_drafter("lookahead+lookahead:7/5/7", Target(tiny_model("llama")))


@torch.inference_mode()
def test_window_ngrams_equal_the_targets_continuations():
    """A window whose first level is the text itself has the target's own tokens in the next one."""
    target = Target(tiny_model("llama", dtype=torch.float64))
    prompt = [3, 5, 7, 9]
    drafter = LookaheadDrafter(LookaheadConfig(window=4, ngram=3, min_prob=1e-9))
    session = Session(target, drafter)
    stream = session.stream([prompt], max_new_tokens=20)
    text = prompt + next(stream)[0].tokens
    row = session.memory[drafter].rows[0]
    row.levels = [[1, 2, 4, 6]]
    next(stream)
    session.memory[drafter].advance()
    for column, token in enumerate(row.levels[-1]):
        logits = target.model(torch.tensor([text + [1, 2, 4, 6][: column + 1]])).logits
        assert token == int(logits[0, -1].argmax())
