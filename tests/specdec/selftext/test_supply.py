"""What is kept of the target's text, merged into a store, and in which figures it is described."""

import random
from collections import Counter

import pytest

from chat_target import chat_target
from specdec.selftext import supply
from specdec.selftext.duplicates import Duplicates
from specdec.selftext.overlap import Overlap
from specdec.selftext.record import DUPLICATE, EMPTY, EXCLUDED, Record
from specdec.selftext.statistics import Statistics
from specdec.selftext.store import Store
from specdec.selftext.supply import Sieve, merge, write_self_text
from specdec.selftext.template import Template

FACTS = {"vocab_size": 61}


NOTHING = Overlap.of([])


class Scripted:
    """Writes like `SelfWriter`, without a model."""

    template = None

    def __init__(self, answers=None, seed=0, stop_after=None):
        self.seed, self.batch, self.answer_tokens = seed, 2, 9
        self.target = chat_target()
        self.answers, self.stop_after, self.asked = answers, stop_after, []

    def write(self, numbers, turns=None):
        for count, number in enumerate(numbers):
            if count == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(number)
            ids = random.Random(number).choices(range(61), k=40)
            if self.answers:
                ids = self.answers[number % len(self.answers)]
            record = Record(number, 0, "facts", 0.0)
            record.add(f"turn {number}", [1, 2], ids, f"answer {number}", 0)
            yield [record]


@pytest.fixture
def store(tmp_path):
    with Store.write(tmp_path / "a.db", FACTS) as opened:
        yield opened


def numbers(store):
    return [r.number for _, r in store.records() if r.ids]


def test_writing_resumes_after_an_interruption(store):
    with pytest.raises(KeyboardInterrupt):
        write_self_text(Scripted(stop_after=3), store, Sieve(store, NOTHING), tokens=400)
    assert numbers(store) == [0, 1, 2]
    told = []
    further = Scripted()
    total = write_self_text(further, store, Sieve(store, NOTHING), tokens=400, progress=told.append)
    assert further.asked == [3, 4, 5, 6, 7, 8, 9]
    assert (total, told[0], told[-1]) == (400, 120, 400)
    nothing_more = Scripted()
    assert write_self_text(nothing_more, store, Sieve(store, NOTHING), tokens=400) == 400
    assert nothing_more.asked == []
    # Of another seed, whose first ten conversations are those of this one.
    other = Scripted(seed=1)
    assert write_self_text(other, store, Sieve(store, NOTHING), tokens=80) == 80
    assert other.asked[:12] == list(range(12))
    assert [r.dropped for i, r in store.records() if i == 2][:12] == [DUPLICATE] * 10 + [""] * 2


def test_writing_ends_when_given_turns_run_out(store):
    scripted = Scripted()
    assert (
        write_self_text(scripted, store, Sieve(store, NOTHING), tokens=10**6, turns=list("abc"))
        == 120
    )
    assert scripted.asked == [0, 1, 2]


def test_writing_stops_with_an_error_if_every_text_is_dropped(store, monkeypatch):
    monkeypatch.setattr(supply, "MAX_DROPPED", 20)
    same = [random.Random(9).choices(range(61), k=40)]
    line = "store: expected text that can be kept, got 20 conversations in a row .* duplicate"
    with pytest.raises(ValueError, match=line):
        write_self_text(Scripted(same), store, Sieve(store, NOTHING), tokens=10**6)
    assert len(numbers(store)) == 1


def test_excluded_and_duplicate_texts_are_dropped_with_the_reason(store):
    sieve = Sieve(store, Overlap.of(["answer 1", "turn 2"]))
    same = [random.Random(9).choices(range(61), k=40)]
    write_self_text(Scripted(same), store, sieve, tokens=41, turns=list("abcde"))
    reasons = [r.dropped for _, r in store.records()]
    assert reasons == ["", EXCLUDED, EXCLUDED, DUPLICATE, DUPLICATE]
    assert sieve.judge(Record(9, 0, "facts", 0.0)).dropped == EMPTY
    again = Sieve(store, NOTHING)  # knows what the store holds
    record = Record(9, 0, "facts", 0.0)
    record.add("t", [1], same[0], "a", 0)
    assert again.judge(record).dropped == DUPLICATE


def test_near_identical_answers_are_duplicates():
    answer = random.Random(0).choices(range(40_000), k=200)
    seen = Duplicates()
    assert seen.add([answer])
    assert not seen.add([[*answer[:-4], 1, 2]])
    assert not seen.add([[7, *answer]])
    assert seen.add([random.Random(1).choices(range(40_000), k=200)])
    assert seen.add([answer[:100] + random.Random(2).choices(range(40_000), k=100)])
    for _ in range(2):
        assert seen.add([[5, 6, 7]])  # a short answer is right each time


def test_merging_is_idempotent_and_rejects_other_targets(store, tmp_path):
    target = chat_target()
    template = Template.of(target.tokenizer)
    lines = tmp_path / "old.jsonl"
    ids = [random.Random(n).choices(range(3, 61), k=40) for n in range(5)]
    lines.write_text(
        "".join(f'{{"prompt_ids": [1, 2], "answer_ids": {i}, "mode": "greedy"}}\n' for i in ids)
    )
    assert merge(lines, store, Sieve(store, NOTHING), template) == 5
    assert merge(lines, store, Sieve(store, NOTHING), template) == 0
    with Store.write(tmp_path / "b.db", FACTS) as other:
        run = other.begin({"seed": 7}, {})
        for number in range(3):
            new = Record(number, 0, "facts", 0.8)
            new.add("t", [1, 2], random.Random(100 + number).choices(range(61), k=40), "a", 2)
            other.add(run, [new])
    assert merge(tmp_path / "b.db", store, Sieve(store, NOTHING), template) == 3
    assert merge(tmp_path / "b.db", store, Sieve(store, NOTHING), template) == 0
    assert [run.asked.get("seed") for run in store.runs] == [None, 7]
    assert Counter(r.temperature for _, r in store.records()) == {0.0: 5, 0.8: 3}
    with Store.write(tmp_path / "c.db", {"vocab_size": 62}):
        pass
    with pytest.raises(
        ValueError, match=r"merge: expected text of the target of .*a\.db, got .*c\.db"
    ):
        merge(tmp_path / "c.db", store, Sieve(store, NOTHING), template)
    lines.write_text('{"prompt_ids": [1], "answer_ids": [61]}\n')
    with pytest.raises(ValueError, match="merge: expected ids below 61, got 61 in .*old.jsonl"):
        merge(lines, store, Sieve(store, NOTHING), template)


def test_statistics_equal_hand_computed_values():
    one, two = Record(0, 0, "facts", 0.0), Record(1, 0, "code", 0.8)
    one.add("t", [1, 2, 3], [5, 6, 5, 6], "a", 6)
    one.add("u", [*one.ids, 9], [5, 7], "b", 0)
    two.add("t", [1], [8] * 40, "c", 0)
    found = Statistics.of([one, two, Record(2, 0, "code", 0.0).drop(DUPLICATE)])
    assert (found.conversations, found.dropped, found.tokens) == (2, {DUPLICATE: 1}, 51)
    assert (found.answer_tokens, found.answers, found.answer_median) == (46, 3, 4)
    assert found.greedy == pytest.approx(6 / 46)
    assert found.cut == pytest.approx(6 / 52)
    assert found.circles == pytest.approx(38 / 46)
    assert found.categories == pytest.approx({"code": 40 / 46, "facts": 6 / 46})
    assert found.distinct[1] == pytest.approx(4 / 46)
    assert found.distinct[2] == pytest.approx(4 / 43)  # 56, 65, 57, 88
    assert Statistics.of([]).answer_tokens == 0


def test_run_requests_conversations_until_it_has_enough_tokens(store, monkeypatch):
    monkeypatch.setattr(supply, "EXPECTED_TOKENS", 10**6)  # far too many: one conversation at first
    scripted = Scripted()
    assert write_self_text(scripted, store, Sieve(store, NOTHING), tokens=200) == 200
    assert scripted.asked == [0, 1, 2, 3, 4]
