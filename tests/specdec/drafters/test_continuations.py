import math
from collections import Counter

import numpy as np
import pytest
import torch

from specdec.drafters.parts.continuations import Trie, proposals_of


def paths_of(trie):
    paths = []
    for token, parent in zip(trie.tokens.tolist(), trie.parents.tolist(), strict=True):
        assert parent < len(paths)
        paths.append(((*paths[parent], token)) if parent >= 0 else (token,))
    return paths


def random_continuations(seed, hits=40, length=6):
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, 3, (hits, length)) + 65_600 * generator.integers(0, 2)
    ends = generator.integers(0, length + 1, hits)
    return np.where(np.arange(length) < ends[:, None], rows, -1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_nodes_and_scores_equal_brute_force(seed, spread):
    rows = random_continuations(seed)
    trie = Trie.of(rows, np.full(rows.shape, 0.5), spread)
    counts = Counter(tuple(row[:end]) for row in rows.tolist() for end in range(1, 7) if row[end - 1] >= 0)  # fmt: skip
    paths = paths_of(trie)
    assert len(set(paths)) == len(paths) and set(paths) == set(counts)
    for path, score, depth in zip(paths, trie.scores, trie.depth, strict=True):
        expected = 0.0
        for end in range(1, len(path) + 1):
            leaving = sum(n for p, n in counts.items() if p[:-1] == path[: end - 1] and len(p) == end)  # fmt: skip
            expected += math.log(0.5 * counts[path[:end]] / (0.5 * leaving + leaving**spread))
        assert score == pytest.approx(expected) and depth == len(path)


def test_weights_differ_by_depth_and_continuation():
    trie = Trie.of(np.array([[1, 2], [1, 3], [4, -1]]), np.array([[1.0, 3.0], [2.0, 1.0], [4.0, 9.0]]))  # fmt: skip
    probabilities = dict(zip(paths_of(trie), np.exp(trie.scores).tolist(), strict=True))
    assert probabilities[(1,)] == pytest.approx(3 / 8)
    assert probabilities[(4,)] == pytest.approx(4 / 8)
    assert probabilities[(1, 2)] == pytest.approx(3 / 8 * 3 / 5)


@pytest.mark.parametrize("most", [1, 5, 100])
def test_best_nodes_are_kept_with_their_parents(most):
    trie = Trie.of(random_continuations(7), np.ones((40, 6)))
    kept = trie.best(most, -2.0)
    assert len(kept.tokens) == min(most, int((trie.scores >= -2.0).sum()))
    scores = dict(zip(paths_of(trie), trie.scores.tolist(), strict=True))
    assert dict(zip(paths_of(kept), kept.scores.tolist(), strict=True)).items() <= scores.items()
    assert min(kept.scores) >= sorted(scores.values())[-len(kept.tokens)]


def test_no_continuations_give_an_empty_tree():
    for rows in (np.empty((0, 3), np.int64), np.empty((3, 0), np.int64), np.full((2, 2), -1)):
        assert len(Trie.of(rows, np.ones(rows.shape)).best(9, -5.0).tokens) == 0


def test_rows_become_proposals_padded_to_the_widest():
    one, two = (Trie.of(np.array([row]), np.ones((1, len(row)))) for row in ([70_000, 5], [3]))
    made = proposals_of([one, Trie.empty(), two], torch.zeros(1), 15, 0.5)
    assert made.spent == 0.5
    assert made.tokens.tolist() == [[70_000, 5], [0, 0], [3, 0]]
    assert made.parents.tolist() == [[-1, 0], [-1, -1], [-1, -1]]
    assert made.valid.tolist() == [[True, True], [False, False], [True, False]]
    assert made.scores[0].tolist() == pytest.approx([math.log(0.5), math.log(0.25)])
    assert [x.dtype for x in made[:5]] == [torch.int64, torch.int64, torch.float32, torch.bool, torch.int64]  # fmt: skip


def test_proposals_have_full_width_on_a_gpu():
    assert proposals_of([Trie.empty()], torch.zeros(1, device="meta"), 15, 0.0).tokens.shape == (
        1,
        15,
    )
