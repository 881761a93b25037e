"""The default model: transformers' tokens in float32, the plain loop's bits in exact bfloat16."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from scripted import ScriptedDrafter
from specdec.drafters import LookupDrafter, MixedDrafter
from specdec.evaluate.questions import read_questions
from specdec.evaluate.replay import TIE_RATE, judge
from specdec.session import Session, end_tokens
from specdec.sources.models import load_model

DATA = Path(__file__).parents[1] / "data"
QUESTIONS = read_questions(DATA / "questions.jsonl")
FIRST = read_questions(DATA / "questions.jsonl", per_category=1)
pytestmark = [pytest.mark.model, pytest.mark.slow]


def prompt_of(target, question):
    messages = [{"role": "user", "content": question.turns[0]}]
    return target.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def ends(target):
    return end_tokens(target.model.generation_config)


def test_float32_tokens_equal_recorded_transformers_output_in_13_categories(target32, whole):
    golden = json.loads((DATA / "library_greedy.json").read_text())
    questions, new = (QUESTIONS, golden["new_tokens"]) if whole else (FIRST, 64)
    assert Counter(q.category for q in QUESTIONS) == dict.fromkeys(
        {q.category for q in QUESTIONS}, 5
    )
    assert len({q.category for q in QUESTIONS}) == 13
    session = Session(target32, "lookup")
    tokens, differing = 0, []
    for question in questions:
        prompt, expected = (
            prompt_of(target32, question),
            golden["answers"][str(question.question_id)][:new],
        )
        written = session.generate(
            [prompt], max_new_tokens=new, eos_token_ids=ends(target32)
        ).tokens[0]
        tokens += len(written)
        if written != expected:
            differing.append((question.question_id, prompt, expected, written))
    if differing:  # rounding may decide a tie, and nothing else
        model64 = load_model()[0].double()
        verdicts = {i: judge(model64, *texts, torch.float32) for i, *texts in differing}
        assert all(v.errors == 0 for v in verdicts.values()), verdicts
        assert sum(v.ties for v in verdicts.values()) <= max(1, TIE_RATE * tokens), verdicts


def test_float32_tokens_equal_transformers_generate_in_the_same_process(target32, whole):
    stock, _ = load_model()
    for question in (QUESTIONS[0], QUESTIONS[30], QUESTIONS[-1]) if whole else QUESTIONS[:1]:
        prompt = prompt_of(target32, question)
        ids = torch.tensor([prompt])
        out = stock.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False
        )
        for drafter in ("plain", "lookup"):
            written = Session(target32, drafter).generate(
                [prompt], max_new_tokens=32, eos_token_ids=ends(target32)
            )
            assert written.tokens[0] == out[0, len(prompt) :].tolist()


def test_exact_bfloat16_tokens_equal_the_plain_loop_with_good_and_bad_drafters(exact16, whole):
    questions = read_questions(DATA / "questions.jsonl", per_category=2) if whole else FIRST[::2]
    chosen = [prompt_of(exact16, question) for question in questions]
    assert len(chosen) == (26 if whole else 7)
    new, vocabulary = 48, exact16.config.vocab_size
    options = {"max_new_tokens": new, "eos_token_ids": ends(exact16)}
    plain = [Session(exact16, "plain").generate([p], **options).tokens[0] for p in chosen]

    def scripted(place, right, seed):
        return ScriptedDrafter(
            [p + t for p, t in zip(*place, strict=True)],
            right=right, seed=seed, most_proposals=24, vocabulary=vocabulary,
        )  # fmt: skip

    for place, (prompt, expected) in enumerate(zip(chosen, plain, strict=True)):
        one = ([prompt], [expected])
        drafters = {
            "lookup": LookupDrafter(),
            "oracle": scripted(one, 1.0, place),
            "distractors": MixedDrafter([scripted(one, 0.4, place), LookupDrafter()]),
        }
        for name, drafter in drafters.items():
            written = Session(exact16, drafter).generate([prompt], **options)
            assert written.tokens[0] == expected, (place, name)

    for start in range(0, len(chosen), 4):  # ragged batches
        prompts, expected = chosen[start : start + 4], plain[start : start + 4]
        drafter = MixedDrafter([LookupDrafter(), scripted((prompts, expected), 0.5, start)])
        written = Session(exact16, drafter).generate(prompts, **options)
        assert written.tokens == expected, start
