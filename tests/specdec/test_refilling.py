"""Rows of a batch are filled from waiting prompts as they end: each text is as if it were alone."""

import functools

import pytest
import torch

import every_drafter
from specdec.drafters import PlainDrafter, SuffixConfig, SuffixDrafter
from specdec.model.cache import TreeCache
from specdec.model.target import Target
from specdec.observer import Round
from specdec.pickers import Greedy, PathPicker, TreeSampler
from specdec.row_statistics import Statistics
from specdec.sampling import Sampling
from specdec.session import Session
from tiny import (
    FAMILIES,
    POSITIONS,
    SEED,
    library_greedy,
    library_sampled,
    random_prompt,
    tiny_model,
)

NEW = 20
# Ragged, one with repeats, one that ends where the model's positions do.
LENGTHS = (5, 1, POSITIONS - 6, 12, 3, 17, 8)
PROMPTS = [random_prompt(length, 40 + length) for length in LENGTHS[:-1]] + [
    random_prompt(4, 3) * 2
]
DRAFTERS = [*every_drafter.DRAFTERS, every_drafter.suffix, every_drafter.lookahead, every_drafter.recycling,
            every_drafter.rest, every_drafter.small_model]  # fmt: skip


@functools.cache
def alone(family, row, how="greedy"):
    model, prompt = tiny_model(family), PROMPTS[row]
    new = min(NEW, POSITIONS - len(prompt))
    if how == "greedy":
        return library_greedy(model, prompt, new)
    return library_sampled(model, prompt, new, row)


def texts_alone(family, ends=(), how="greedy"):
    """The library's own texts, each up to its first end token."""
    cut = []
    for row in range(len(PROMPTS)):
        text = alone(family, row, how)
        at = next((at for at, token in enumerate(text) if token in ends), len(text) - 1)
        cut.append(text[: at + 1])
    return cut


def ends_of(family, how="greedy"):
    """End tokens by which texts end at many places, one at least with its first token."""
    texts = texts_alone(family, how=how)
    return {texts[4][0], texts[0][12]}


def picker_of(how):
    return PathPicker(Sampling(SEED, torch.arange(len(PROMPTS)))) if how == "sampled" else None


@pytest.mark.sampled
@pytest.mark.parametrize("how", ["greedy", "sampled"])
@pytest.mark.parametrize("make", DRAFTERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mistral"])
def test_each_text_equals_the_text_generated_alone(family, make, how):
    target = Target(tiny_model(family))
    ends, drafter = ends_of(family, how), make(target)
    expected = texts_alone(family, ends, how)
    assert len(set(map(len, expected))) > 2 and min(map(len, expected)) == 1
    session = Session(target, drafter, max_nodes=8, guard=False)
    for rows in (3, 1, 2, 7, 3, 99):  # what was kept of earlier texts is of no harm
        written = session.generate(
            PROMPTS, max_new_tokens=NEW, eos_token_ids=ends, picker=picker_of(how), rows_at_once=rows
        )  # fmt: skip
        assert written.tokens == expected, rows
        assert written.metrics.new_tokens == sum(map(len, expected))
        assert sum(written.metrics.gains) == sum(map(len, expected)) - len(PROMPTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_text_of_other_families_equals_the_text_generated_alone(family):
    target = Target(tiny_model(family))
    ends = ends_of(family)
    for make in (every_drafter.plain, every_drafter.kangaroo, every_drafter.training_free):
        session = Session(target, make(target), max_nodes=8, guard=False)
        written = session.generate(PROMPTS, max_new_tokens=NEW, eos_token_ids=ends, rows_at_once=2)
        assert written.tokens == texts_alone(family, ends), make.__name__


def test_tree_sampled_texts_equal_the_texts_generated_alone():
    target = Target(tiny_model("llama"))
    picker = TreeSampler(Sampling(SEED, torch.arange(len(PROMPTS))))
    session = Session(target, every_drafter.lookup(target), max_nodes=8)
    written = session.generate(PROMPTS, max_new_tokens=NEW, picker=picker, rows_at_once=3)
    assert written.tokens == texts_alone("llama", how="sampled")


@pytest.mark.parametrize("make", DRAFTERS, ids=lambda make: make.__name__)
def test_exact_bfloat16_text_does_not_depend_on_the_rows_beside_it(make):
    target = Target(tiny_model("llama", dtype=torch.bfloat16), exact=True)
    session = Session(target, PlainDrafter())
    expected = [session.generate([p], max_new_tokens=NEW).tokens[0] for p in PROMPTS]
    session = Session(target, make(target), max_nodes=8)
    for rows in (1, 3):
        written = session.generate(PROMPTS, max_new_tokens=NEW, rows_at_once=rows)
        assert written.tokens == expected


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_prompts_start_in_order_as_soon_as_a_row_is_free(rows):
    target, ends = Target(tiny_model("llama")), ends_of("llama")
    rounds: list[Round] = []
    Session(target, "plain").generate(
        PROMPTS, max_new_tokens=NEW, eos_token_ids=ends, rows_at_once=rows, on_round=rounds.append
    )
    begun = [e.row for each in rounds if each.tree is None for e in each.emitted]
    assert begun == list(range(len(PROMPTS)))
    # By hand: each round is a token of every row.
    left = [len(text) - 1 for text in texts_alone("llama", ends)]
    written, waiting, passes = [], list(range(len(PROMPTS))), 0
    while written or waiting:
        while waiting and len(written) < rows:
            written.append(waiting.pop(0))
            written = [row for row in written if left[row]]
        if written:
            passes += 1
            for row in written:
                left[row] -= 1
            written = [row for row in written if left[row]]
    assert sum(each.tree is not None for each in rounds) == passes


@pytest.mark.parametrize(
    "make", [every_drafter.kangaroo, every_drafter.small_model], ids=lambda make: make.__name__
)
def test_cache_memory_depends_on_rows_at_once(make):
    target = Target(tiny_model("llama"))
    drafter, rows = make(target), 2
    session = Session(target, drafter, max_nodes=8)
    session.generate(PROMPTS, max_new_tokens=NEW, rows_at_once=rows)
    caches = [session.cache]
    if make is every_drafter.small_model:
        caches.append(session.memory[drafter].cache)
    for cache in caches:
        assert cache.kv.shape[2] == rows
        assert cache.drafter_kv is None or cache.drafter_kv.shape[2] == rows
        assert len(cache.lengths) == len(cache.host_lengths) == len(PROMPTS)


@pytest.mark.parametrize("make", [every_drafter.plain, every_drafter.kangaroo])
def test_next_text_in_a_row_does_not_see_the_previous_one(make):
    target = Target(tiny_model("llama"))
    session = Session(target, make(target), max_nodes=8)

    def spoil(each):
        cache = session.cache
        for e in each.emitted:
            if e.finished:
                for kv in (cache.kv, cache.drafter_kv):
                    if kv is not None:
                        kv[:, :, cache.row_of(e.row)] = float("nan")

    written = session.generate(PROMPTS[::-1], max_new_tokens=NEW, rows_at_once=1, on_round=spoil)
    assert written.tokens == texts_alone("llama")[::-1]


def test_full_cache_is_read_without_an_index(monkeypatch):
    opened = []
    open_pass = TreeCache.open

    def noted(self, ancestors, depth, rows, **options):
        now = open_pass(self, ancestors, depth, rows, **options)
        opened.append((len(rows.host), now.cache_rows is None))
        return now

    monkeypatch.setattr(TreeCache, "open", noted)
    target = Target(tiny_model("llama"))
    Session(target, "plain").generate(
        PROMPTS, max_new_tokens=NEW, eos_token_ids=ends_of("llama"), rows_at_once=3
    )
    assert {in_place for _, in_place in opened} == {True, False}
    assert all(in_place == (rows == 3) for rows, in_place in opened)


def test_stops_receive_the_rows_index_and_text():
    target, asked = Target(tiny_model("llama")), []
    expected = texts_alone("llama")

    def stop(row, text):
        ids = text[0].tolist()
        assert ids == PROMPTS[row] + expected[row][: len(ids) - len(PROMPTS[row])]
        asked.append(row)
        return len(ids) - len(PROMPTS[row]) == 1 + 3 * (row % 3)

    session = Session(target, every_drafter.own_model(target), max_nodes=8)
    written = session.generate(PROMPTS, max_new_tokens=NEW, stops=stop, rows_at_once=2)
    assert written.tokens == [text[: 1 + 3 * (row % 3)] for row, text in enumerate(expected)]
    assert set(asked) == set(range(len(PROMPTS)))


@pytest.mark.parametrize(
    "make", [every_drafter.plain, every_drafter.kangaroo, every_drafter.suffix]
)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_copies_of_prompts_may_wait_for_rows(monkeypatch, make, rows):
    target, prompts, copies = Target(tiny_model("llama")), PROMPTS[2:5], 3
    count = len(prompts) * copies
    picker = PathPicker(Sampling(SEED, torch.arange(count)))
    expected = [
        library_sampled(tiny_model("llama"), prompts[row // copies], min(8, POSITIONS - len(prompts[row // copies])), row)
        for row in range(count)
    ]  # fmt: skip
    read, prefill = [], target.prefill
    monkeypatch.setattr(
        target, "prefill", lambda ids, *rest: read.append(len(ids)) or prefill(ids, *rest)
    )
    session = Session(target, make(target), max_nodes=8)
    options = {"max_new_tokens": 8, "picker": picker, "copies": copies, "rows_at_once": rows}
    assert session.generate(prompts, **options).tokens == expected
    assert read[0] == -(-rows // copies)  # those that begin together read it once


@pytest.mark.parametrize("at", ["prefill", "verify", "pick", "on_round"])
def test_session_is_usable_after_an_exception_midway(monkeypatch, at):
    target = Target(tiny_model("llama"))
    session = Session(target, every_drafter.training_free(target), max_nodes=8)
    calls = []

    def broken(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return known(*arguments, **options) if known else None

    options = {"max_new_tokens": NEW, "eos_token_ids": ends_of("llama"), "rows_at_once": 2}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        known = None if at == "on_round" else getattr(Greedy if at == "pick" else target, at)
        if at == "on_round":
            session.generate(PROMPTS, **options, on_round=broken)
        patch.setattr(Greedy if at == "pick" else target, at, broken)
        session.generate(PROMPTS, **options)
    assert len(calls) == 3
    assert session.generate(PROMPTS, **options).tokens == texts_alone("llama", ends_of("llama"))


@pytest.mark.parametrize("make", DRAFTERS, ids=lambda make: make.__name__)
def test_session_can_continue_after_rows_waited(make):
    target = Target(tiny_model("llama"))
    session = Session(target, make(target), max_nodes=8)
    expected = texts_alone("llama")
    session.generate(PROMPTS, max_new_tokens=NEW, rows_at_once=2)
    for prompts in (PROMPTS, PROMPTS, PROMPTS[:2]):
        written = session.generate(prompts, max_new_tokens=NEW)
        assert written.tokens == expected[: len(prompts)]
    longer = [p + t for p, t in zip(PROMPTS[:2], expected[:2], strict=True)]
    again = session.generate(longer, max_new_tokens=5).tokens
    assert again == [library_greedy(tiny_model("llama"), text, 5) for text in longer]


def test_session_continues_if_all_rows_fit(monkeypatch):
    target, read = Target(tiny_model("llama")), []
    session, prompts = Session(target, "plain"), [PROMPTS[0], PROMPTS[3]]
    texts = session.generate(prompts, max_new_tokens=5, rows_at_once=2).tokens
    longer = [p + t for p, t in zip(prompts, texts, strict=True)]
    prefill = target.prefill
    monkeypatch.setattr(
        target, "prefill", lambda ids, *rest: read.append(ids.shape[1]) or prefill(ids, *rest)
    )
    session.generate(longer, max_new_tokens=5, rows_at_once=8)
    session.generate(longer, max_new_tokens=5, rows_at_once=1)
    first = len(longer[0]) - 1
    assert read[0] < max(map(len, longer)) - 5  # from where the shorter one is new
    assert read[1:] == [first + 1, len(longer[1])]


def test_rows_that_start_later_are_drafted_for():
    target = Target(tiny_model("llama"))
    for make in (every_drafter.suffix, every_drafter.lookahead, every_drafter.own_model):
        session = Session(target, make(target), max_nodes=16, guard=False)
        prompts = [random_prompt(3, 1), random_prompt(4, 3) * 4, random_prompt(5, 4) * 3]
        rounds: list[Round] = []
        session.generate(prompts, max_new_tokens=40, rows_at_once=1, on_round=rounds.append)
        late = [e for each in rounds for e in each.emitted if e.row == 2 and e.nodes]
        assert sum(e.nodes for e in late) > len(late), make.__name__


def test_max_nodes_statistics_and_guard_are_per_prompt():
    target, ends = Target(tiny_model("llama")), ends_of("llama")
    expected, statistics = texts_alone("llama", ends), Statistics()
    session = Session(target, every_drafter.training_free(target))
    caps = [1, 8, 4, 1, 8, 2, 8]
    texts = [[] for _ in PROMPTS]
    for emitted in session.stream(
        PROMPTS, max_new_tokens=NEW, eos_token_ids=ends, rows_at_once=2, max_nodes=caps, statistics=statistics
    ):  # fmt: skip
        for e in emitted:
            texts[e.row] += e.tokens
            assert e.nodes <= caps[e.row]
    assert texts == expected
    assert [row.new_tokens for row in statistics.rows] == list(map(len, expected))
    assert statistics.rows[0].drafted == statistics.rows[3].drafted == 0


def test_oldest_texts_are_dropped_when_others_start():
    target = Target(tiny_model("llama"))
    drafter = SuffixDrafter(SuffixConfig(memory=128))
    session = Session(target, drafter, max_nodes=8, guard=False)
    for rows in (1, 3):
        written = session.generate(PROMPTS, max_new_tokens=NEW, rows_at_once=rows)
        assert written.tokens == texts_alone("llama")
        memory = session.memory[drafter]
        assert len(memory.texts) <= rows
        assert memory.young.size < 64 + 2 * rows * POSITIONS


def test_drafter_without_join_is_rejected_if_rows_wait():
    class Bare:
        tap = None
        start = draft = observe = None

    session = Session(Target(tiny_model("llama")), Bare())
    with pytest.raises(TypeError, match="drafter: expected one with a method join, .* got Bare"):
        session.stream(PROMPTS, max_new_tokens=4, rows_at_once=2)
    session.stream(PROMPTS, max_new_tokens=4, rows_at_once=7)


def test_error_names_rows_at_once_below_1():
    session = Session(Target(tiny_model("llama")), "plain")
    with pytest.raises(ValueError, match="rows_at_once: expected at least 1, got 0"):
        session.stream(PROMPTS, max_new_tokens=4, rows_at_once=0)
