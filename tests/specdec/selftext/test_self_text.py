"""What the target is asked and answers, what is kept of it, and in which figures it is described."""

import random
from collections import Counter

import pytest
import torch

from specdec import load_target
from specdec.model.target import Target
from specdec.selftext import supply, writer
from specdec.selftext.continuous_batching import Written
from specdec.selftext.duplicates import Duplicates
from specdec.selftext.follow_ups import FOLLOW_UPS, PASSAGES
from specdec.selftext.openers import CATEGORIES, PASSAGE, Opener
from specdec.selftext.overlap import Overlap
from specdec.selftext.record import DUPLICATE, EMPTY, EXCLUDED, Record
from specdec.selftext.statistics import Statistics
from specdec.selftext.store import Store
from specdec.selftext.supply import Sieve, merge, write_self_text
from specdec.selftext.template import Template
from specdec.selftext.writer import SelfWriter
from tiny import letters, library_greedy, tiny_model

FACTS = {"vocab_size": 61}
NOTHING = Overlap.of([])
TURNS = (
    "{% for m in messages %}{{ 'U' if m['role'] == 'user' else 'B' }}{{ m['content'] }}{% endfor %}"
)


def tiny_target(template=TURNS + "{% if add_generation_prompt %}B{% endif %}", dtype=torch.float64):
    tokenizer = letters()
    tokenizer.chat_template = template
    return Target(tiny_model("llama", dtype=dtype), tokenizer)


@pytest.fixture
def few_openers(monkeypatch):
    """Openers that the tiny tokenizer can write, with passages and dialogues, in few tokens."""
    short = [Opener("ab", 6), Opener("cde", 4)]
    monkeypatch.setattr(
        writer, "CATEGORIES", {
            "plain": CATEGORIES["free"]._replace(openers=short),
            "about": CATEGORIES["free"]._replace(openers=[Opener(f"x{PASSAGE}y", 0)]),
        }
    )  # fmt: skip
    monkeypatch.setattr(writer, "PASSAGES", [Opener("z", 3)])
    monkeypatch.setattr(writer, "FOLLOW_UPS", [Opener("m", 3), Opener("no", 0)])


def written(target, count, **options):
    options = {"batch": 4, "answer_tokens": 9, "seed": 5, **options}
    found = SelfWriter(target, **options).write(range(count))
    return sorted(
        (record for records in found for record in records), key=lambda r: (r.number, -r.part)
    )


def test_openers_are_well_formed_and_cover_the_categories():
    openers = [o for c in CATEGORIES.values() for o in c.openers] + PASSAGES + FOLLOW_UPS
    assert all(o.text == o.text.lstrip() and 0 <= o.tokens <= 320 for o in openers)
    assert len({o.text for o in openers}) > 200
    assert all(o.tokens or PASSAGE in o.text or o in FOLLOW_UPS for o in openers)
    for name in ("code", "arithmetic", "translation", "roleplay", "summaries", "extraction"):
        assert name in CATEGORIES


def test_text_is_determined_by_the_seed(few_openers):
    target = tiny_target()
    first = written(target, 12)
    assert [r.ids for r in first] == [r.ids for r in written(target, 12)]
    # In float64 nothing is rounded: a conversation does not depend on those beside it.
    assert [r.ids for r in first] == [r.ids for r in written(target, 12, batch=3)]
    assert [r.ids for r in first] != [r.ids for r in written(target, 12, seed=6)]


def test_greedy_answers_equal_the_targets(few_openers):
    target = tiny_target()
    records = written(target, 40)
    assert {len(r.spans) for r in records} > {2, 4}
    for record in (r for r in records if r.temperature == 0):
        begin = 0
        for prompt, answer in zip(record.spans[::2], record.spans[1::2], strict=True):
            asked = record.ids[: begin + prompt]
            assert record.ids[len(asked) : len(asked) + answer] == library_greedy(
                target.model, asked, answer
            )
            begin += prompt + answer
    template = Template.of(target.tokenizer)
    # What the tiny template puts between turns, a turn may hold as well.
    clear = [r for r in records if not set("".join(r.texts[::2])) & set("UB")]
    assert len(clear) > 20
    assert [template.texts_of(r.ids, r.spans) for r in clear] == [r.texts for r in clear]


def test_passage_is_generated_first_and_inserted_into_the_turn(few_openers):
    records = written(tiny_target(), 40)
    passages = {r.number: r for r in records if r.part == 1}
    about = [r for r in records if r.category == "about" and r.ids]
    assert len(about) > 5
    for record in about:
        assert record.texts[0] == f"x{passages[record.number].texts[1]}y"


def test_given_turns_are_answered_once_each_by_number():
    target = tiny_target()
    turns = ["abc", "de", "", "f"]
    made = SelfWriter(target, batch=2, answer_tokens=4).write(turns=turns)
    records = {r.number: r for records in made for r in records}
    assert sorted(records) == [0, 1, 2, 3]
    assert [records[n].texts[:1] for n in range(4)] == [["abc"], ["de"], [], ["f"]]


@pytest.mark.parametrize("after", ["X", ""])
def test_turn_ends_at_the_templates_end_of_turn(after):
    target = tiny_target("{% for m in messages %}U{{ m['content'] }}" + after + "{% endfor %}")
    made = SelfWriter(target, batch=1)
    template = made.template
    assert (template.before_turn, template.end_of_turn) == ("U", after)
    script = made._talk(Record(0, 0, "plain", 0.0), [Opener("ab", 20)])
    request = next(script)
    assert target.tokenizer.decode(request.ids) == "Uab"
    ids = target.tokenizer("cdXef")["input_ids"]
    answered = script.send(Written(ids, 0))
    said = target.tokenizer.decode(answered.ids)
    assert said == ("UabcdX" if after else "UabcdXef")


def test_template_markers_delimit_the_turns():
    template = "S{% for m in messages %}{{ 'PU' if m['role'] == 'user' else 'PB' }}{{ m['content'] }}E{% endfor %}"
    target = tiny_target(template + "{% if add_generation_prompt %}PB{% endif %}")
    parts = Template.of(target.tokenizer)
    assert (parts.before_turn, parts.end_of_turn, parts.before_answer) == ("PU", "E", "EPB")
    texts = ["ab", "cd", "ef", "gh"]
    prompts = [parts.prompt(texts[:2], "ef"), parts.prompt([], "ab")]
    assert prompts == ["SPUabEPBcdEPUefEPB", "SPUabEPB"]
    ids = target.tokenizer(prompts[0] + "ghE")["input_ids"]
    spans = [8, 3, 7, 3]  # an answer's end is its own
    assert parts.texts_of(ids, spans) == ["ab", "cdE", "ef", "ghE"]


def test_tokenizer_without_a_chat_template_is_rejected():
    target = tiny_target(None)
    with pytest.raises(ValueError, match="model: expected a tokenizer with a chat template"):
        SelfWriter(target)


def test_error_names_the_turn_that_is_too_long():
    made = SelfWriter(tiny_target())
    made.check_turns(["abc"])
    with pytest.raises(
        ValueError, match="prompts: expected fewer than 160 tokens, got .* in turn 2"
    ):
        made.check_turns(["abc", "a" * 158])


class Scripted:
    """Writes like `SelfWriter`, without a model."""

    template = None

    def __init__(self, answers=None, seed=0, stop_after=None):
        self.seed, self.batch, self.answer_tokens = seed, 2, 9
        self.target = tiny_target()
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
    target = tiny_target()
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


@pytest.mark.model
@pytest.mark.slow
def test_default_model_text_is_reproducible_and_answers_equal_transformers():
    target = load_target(dtype=torch.bfloat16)
    first = written(target, 5, answer_tokens=16, seed=3)
    assert [r.ids for r in first] == [r.ids for r in written(target, 5, answer_tokens=16, seed=3)]
    greedy = [r for r in first if r.temperature == 0 and r.ids]
    assert greedy
    for record in greedy:
        prompt = record.spans[0]
        expected = library_greedy(target.model, record.ids[:prompt], 2, [2])
        # Up to rounding: the first tokens are rarely close.
        assert record.ids[prompt : prompt + 2] == expected
