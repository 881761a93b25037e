"""The look-up against brute force: longest match, occurrences and continuations."""

import random
from collections import Counter

import numpy as np
import pytest

from specdec.datastore.build import build_datastore
from specdec.datastore.order import CONTEXT, context_order, stored_type
from specdec.datastore.store import Datastore


def store_of(path, texts, vocabulary=8, **options):
    build_datastore(path, texts, vocabulary_size=vocabulary, **options)
    return Datastore.open(path)


def random_texts(seed, vocabulary, count=30):
    generator = random.Random(seed)
    return [
        [generator.randrange(vocabulary) for _ in range(generator.randrange(1, 40))]
        for _ in range(count)
    ]


def brute_force(texts, context, most, length):
    """The longest match that something follows, and what follows it, by looking everywhere."""
    for matched in range(min(most, len(context)), 0, -1):
        end = context[-matched:]
        found = [
            text[place : place + length]
            for text in texts
            for place in range(matched, len(text))
            if text[place - matched : place] == end
        ]
        if found:
            return matched, Counter(map(tuple, found))
    return 0, Counter()


@pytest.mark.parametrize("vocabulary", [2, 8, 70_000])
@pytest.mark.parametrize("shard_tokens", [None, 150])
def test_longest_match_and_continuations_equal_brute_force(tmp_path, vocabulary, shard_tokens):
    texts = random_texts(vocabulary, vocabulary)
    store = store_of(tmp_path / "s", texts, vocabulary, shard_tokens=shard_tokens)
    assert (len(store.shards) > 1) == (shard_tokens is not None)
    generator = random.Random(1)
    for _ in range(200):
        text = generator.choice(texts)
        begin = generator.randrange(len(text))
        context = [
            generator.randrange(vocabulary),
            *text[begin : begin + generator.randrange(1, 9)],
        ]
        match = store.longest(context, 6)
        found = match.continuations(10_000, 5).tolist()
        rows = Counter(tuple(token for token in row if token >= 0) for row in found)
        assert (match.length, rows) == brute_force(texts, context, 6, 5)
        assert match.total == rows.total()


def test_positions_are_sorted_by_reversed_contexts():
    generator = np.random.default_rng(0)
    for vocabulary in (3, 70_000):
        dtype = stored_type(vocabulary)
        tokens = generator.integers(0, min(vocabulary, 4), 600).astype(dtype)
        tokens[0] = tokens[-1] = 0
        padded = [*tokens.tolist(), *[0] * CONTEXT]
        followed = [at for at in range(1, 600) if padded[at] and padded[at - 1]]
        order = context_order(tokens).tolist()
        assert order == sorted(followed, key=lambda at: (padded[at : at + CONTEXT], at))


def test_matches_and_continuations_stay_within_a_text(tmp_path):
    store = store_of(tmp_path / "s", [[1, 2, 3], [4, 5]])
    assert store.longest([3, 4], 8).length == 1  # 3 is the end of a text, 4 begins one
    assert store.longest([2, 3], 8).length == 0  # nothing follows
    assert store.longest([1], 8).continuations(9, 4).tolist() == [[2, 3, -1, -1]]


def test_read_occurrences_are_evenly_spaced_and_deterministic(tmp_path):
    store = store_of(tmp_path / "s", [[1, 2 + place % 6] for place in range(100)], shard_tokens=60)
    match = store.longest([1], 4)
    assert match.total == 100
    some = match.continuations(10, 1)[:, 0].tolist()
    assert some == match.continuations(100, 1)[::10, 0].tolist() == store.longest([1], 4).continuations(10, 1)[:, 0].tolist()  # fmt: skip


@pytest.mark.parametrize("most", [0, CONTEXT + 1])
def test_match_length_is_limited_to_the_sorted_context(tmp_path, most):
    store = store_of(tmp_path / "s", [[1] * 90])
    assert store.longest([1] * 90, CONTEXT).length == CONTEXT
    with pytest.raises(ValueError, match=f"most: expected 1 to {CONTEXT}, got {most}"):
        store.longest([1], most)


def test_tokens_outside_the_vocabulary_end_a_match(tmp_path):
    store = store_of(tmp_path / "s", [[1, 2, 3]])
    assert store.longest([9, 1, 2], 8).length == 2
    assert store.longest([1, 9], 8).length == store.longest([], 8).length == 0


def test_ids_above_65535_are_kept(tmp_path):
    store = store_of(tmp_path / "s", [[70_000, 131_071, 65_536, 5]], vocabulary=131_072)
    assert store.longest([70_000, 131_071], 8).continuations(1, 3).tolist() == [[65_536, 5, -1]]
