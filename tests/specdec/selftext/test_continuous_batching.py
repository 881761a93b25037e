"""Continuous batching: the text of each row is the library's, whatever runs beside it and wherever it lies."""

import pytest
import torch

from families import WORKING, tiny_of
from specdec.model.target import Target
from specdec.selftext import continuous_batching, row_cache
from specdec.selftext.continuous_batching import ContinuousBatch, Request
from specdec.selftext.loops import LoopWatch, loop_end
from tiny import (
    FAMILIES,
    POSITIONS,
    SEED,
    VOCABULARY,
    library_greedy,
    library_sampled,
    random_prompt,
    tiny_model,
)

NEVER = frozenset({VOCABULARY + 1})


@pytest.fixture
def text_that_repeats_itself_stays(monkeypatch):
    """Tiny models go in circles soon."""
    monkeypatch.setattr(LoopWatch, "add", lambda self, token: False)


def batch_of(model, rows=3, end_tokens=NEVER):
    return ContinuousBatch(
        Target(model), rows=rows, capacity=POSITIONS, seed=SEED, end_tokens=end_tokens
    )


def one(prompt, tokens, temperature=0.0, stream=0):
    """A script that makes one request and returns all of it."""
    written = yield Request(prompt, tokens, temperature, stream)
    return prompt, tokens, temperature, stream, written.ids


def expected(model, prompt, tokens, temperature, stream):
    if temperature == 0:
        return library_greedy(model, prompt, tokens)
    how = {"temperature": temperature, "top_k": continuous_batching.TOP_K}
    return library_sampled(model, prompt, tokens, stream, **how)


whole = pytest.mark.usefixtures("text_that_repeats_itself_stays")


@whole
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_equals_transformers(family, monkeypatch):
    monkeypatch.setattr(row_cache, "ZONE", 2)
    monkeypatch.setattr(continuous_batching, "ZONE", 2)
    monkeypatch.setattr(row_cache, "BLOCK", 16)
    model = tiny_model(family)
    # More scripts than rows, short and long, so that rows end at different times and others move up.
    asked = [
        one(random_prompt(3 + 11 * i % 40, i), 4 + 17 * i % 60, 0.8 * (i % 3 == 0), i)
        for i in range(11)
    ]
    done = list(batch_of(model, rows=5).run(iter(asked)))
    assert sorted(stream for *_, stream, _ in done) == list(range(11))
    for *request, written in done:
        assert written == expected(model, *request)


@whole
@pytest.mark.parametrize("model_type", WORKING)
def test_continuous_batching_equals_transformers_for_every_family(model_type):
    model = tiny_of(model_type)
    if model is None:
        pytest.skip("the library has no such family yet")
    asked = [one(random_prompt(5 + 9 * i, i), 8) for i in range(3)]
    for prompt, tokens, *_, written in batch_of(model, rows=2).run(iter(asked)):
        assert written == library_greedy(model, prompt, tokens)


@whole
def test_follow_up_request_reuses_the_rows_cache(monkeypatch):
    model = tiny_model("llama")
    read = []
    forward = row_cache.RowsPass.__init__

    def counted(self, cache, lengths, counts):
        read.extend(counts)
        forward(self, cache, lengths, counts)

    monkeypatch.setattr(row_cache.RowsPass, "__init__", counted)
    prompt, further = random_prompt(30, 1), random_prompt(5, 2)

    def dialogue():
        first = yield Request(prompt, 10, 0.0, 0)
        second = yield Request([*prompt, *first.ids, *further], 10, 0.0, 0)
        # Another text that begins alike: what differs is read again.
        third = yield Request([*prompt[:20], *further], 4, 0.0, 0)
        return first.ids, second.ids, third.ids

    ((first, second, third),) = batch_of(model).run(iter([dialogue()]))
    assert first == library_greedy(model, prompt, 10)
    assert second == library_greedy(model, [*prompt, *first, *further], 10)
    assert third == library_greedy(model, [*prompt[:20], *further], 4)
    assert sum(read) == 30 + 9 + (1 + 5) + 9 + 5 + 3


@whole
def test_requests_end_at_eos_and_scripts_may_be_empty():
    model = tiny_model("llama")
    text = library_greedy(model, random_prompt(6, 3), 20)
    end = text[7]

    def silent():
        return "nothing"
        yield

    scripts = [silent(), one(random_prompt(6, 3), 20), silent()]
    done = list(batch_of(model, end_tokens=frozenset({end})).run(iter(scripts)))
    assert done[0] == "nothing"
    assert "nothing" in done[1:]
    (*_, written) = next(d for d in done if d != "nothing")
    assert written == text[: text.index(end) + 1]


def test_out_of_memory_is_one_line(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    batch = batch_of(tiny_model("llama"))
    monkeypatch.setattr(torch, "zeros", full)
    line = r"memory: expected 0.00 GB for keys and values of 3 x 160 tokens, got less; write fewer texts"
    with pytest.raises(MemoryError, match=line):
        list(batch.run(iter([one([3, 4], 5)])))


def test_rows_of_different_lengths_are_sorted_into_zones(monkeypatch):
    monkeypatch.setattr(continuous_batching, "ZONE", 2)
    batch = batch_of(tiny_model("llama"), rows=6)
    list(batch.run(iter([one(random_prompt(4, i), 5) for i in range(6)])))  # makes the cache
    batch.cache.kv = torch.arange(6.0)[:, None, None, None].expand(batch.cache.kv.shape).clone()
    lengths = [90, 80, 70, 60, 50, 40]
    for length in lengths:
        row = continuous_batching._Row(None)
        row.text = row.held = [length] * length
        batch.rows.append(row)
    new = continuous_batching._Row(None)
    new.text = [50, 50, 7]
    batch._replace(batch.rows[1], new)
    assert [len(row.held) for row in batch.rows] == [90, 70, 50, 60, 2, 40]
    places = batch.cache.kv[0, 0, 0, :, 0, 0, 0].tolist()
    assert places == [0, 2, 4, 3, 4, 5]
    batch._replace(batch.rows[0], None)
    assert sorted(len(row.held) for row in batch.rows) == [2, 40, 50, 60, 70]


def test_repetition_loops_are_cut_after_the_second_repeat():
    text = list(range(100, 120))
    for period in ([7], [7, 8, 9], list(range(30))):
        ids = text + period * 60
        assert loop_end(ids) == len(text) + 2 * len(period)
    assert loop_end(text) == len(text)
    twice = list(range(40)) * 2  # a quotation is no loop
    assert loop_end(twice) == len(twice)
