"""What the target is asked and answers."""

import pytest
import torch

from chat_target import chat_target
from specdec import load_target
from specdec.selftext import writer
from specdec.selftext.continuous_batching import Written
from specdec.selftext.follow_ups import FOLLOW_UPS, PASSAGES
from specdec.selftext.openers import CATEGORIES, PASSAGE, Opener
from specdec.selftext.record import Record
from specdec.selftext.template import Template
from specdec.selftext.writer import SelfWriter
from tiny import library_greedy


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
    target = chat_target()
    first = written(target, 12)
    assert [r.ids for r in first] == [r.ids for r in written(target, 12)]
    # In float64 nothing is rounded: a conversation does not depend on those beside it.
    assert [r.ids for r in first] == [r.ids for r in written(target, 12, batch=3)]
    assert [r.ids for r in first] != [r.ids for r in written(target, 12, seed=6)]


def test_greedy_answers_equal_the_targets(few_openers):
    target = chat_target()
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
    records = written(chat_target(), 40)
    passages = {r.number: r for r in records if r.part == 1}
    about = [r for r in records if r.category == "about" and r.ids]
    assert len(about) > 5
    for record in about:
        assert record.texts[0] == f"x{passages[record.number].texts[1]}y"


def test_given_turns_are_answered_once_each_by_number():
    target = chat_target()
    turns = ["abc", "de", "", "f"]
    made = SelfWriter(target, batch=2, answer_tokens=4).write(turns=turns)
    records = {r.number: r for records in made for r in records}
    assert sorted(records) == [0, 1, 2, 3]
    assert [records[n].texts[:1] for n in range(4)] == [["abc"], ["de"], [], ["f"]]


@pytest.mark.parametrize("after", ["X", ""])
def test_turn_ends_at_the_templates_end_of_turn(after):
    target = chat_target("{% for m in messages %}U{{ m['content'] }}" + after + "{% endfor %}")
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
    target = chat_target(template + "{% if add_generation_prompt %}PB{% endif %}")
    parts = Template.of(target.tokenizer)
    assert (parts.before_turn, parts.end_of_turn, parts.before_answer) == ("PU", "E", "EPB")
    texts = ["ab", "cd", "ef", "gh"]
    prompts = [parts.prompt(texts[:2], "ef"), parts.prompt([], "ab")]
    assert prompts == ["SPUabEPBcdEPUefEPB", "SPUabEPB"]
    ids = target.tokenizer(prompts[0] + "ghE")["input_ids"]
    spans = [8, 3, 7, 3]  # an answer's end is its own
    assert parts.texts_of(ids, spans) == ["ab", "cdE", "ef", "ghE"]


def test_tokenizer_without_a_chat_template_is_rejected():
    target = chat_target(None)
    with pytest.raises(ValueError, match="model: expected a tokenizer with a chat template"):
        SelfWriter(target)


def test_error_names_the_turn_that_is_too_long():
    made = SelfWriter(chat_target())
    made.check_turns(["abc"])
    with pytest.raises(
        ValueError, match="prompts: expected fewer than 160 tokens, got .* in turn 2"
    ):
        made.check_turns(["abc", "a" * 158])


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
