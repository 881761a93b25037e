"""The default model sampled and generated from: the same text with any drafter, through every way in."""

import functools
from pathlib import Path
from threading import Thread

import pytest
import torch
from transformers import TextIteratorStreamer, pipeline

import specdec
from specdec.evaluate.benchmark import chat_prompts
from specdec.evaluate.questions import read_questions
from specdec.loading import load_target

pytestmark = pytest.mark.model
QUESTIONS = Path(__file__).parents[1] / "data" / "questions.jsonl"
SETTINGS = [
    {"temperature": 0.7, "top_p": 0.9, "top_k": 0},
    {"temperature": 1.0, "top_k": 0},
    {"temperature": 1.3, "top_k": 50},
    {"temperature": 1.0, "top_k": 0, "repetition_penalty": 1.2},
]
IDS = ["T0.7-p0.9", "T1.0", "T1.3-k50", "penalty"]


@functools.cache
def target():
    return load_target()


def prompts(count):
    asked = chat_prompts(target().tokenizer, read_questions(QUESTIONS, per_category=2), turns=1)
    return [torch.tensor([p.ids]) for p in sorted(asked, key=lambda p: len(p.ids))[:count]]


def write(ids, drafter, **options):
    out = specdec.generate(
        target(), ids, drafter, attention_mask=torch.ones_like(ids), **{"max_new_tokens": 24, **options}
    )  # fmt: skip
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_sampled_text_is_the_same_with_any_drafter(setting):
    drafters = ["kangaroo", "mixed", "redrafter"]
    for at, ids in enumerate(prompts(3)):
        options = {"do_sample": True, "seed": at, **setting}
        expected = write(ids, "none", **options)
        assert write(ids, drafters[at % 3], **options) == expected


def test_nothing_behind_a_stop_string_is_returned():
    (ids,) = prompts(1)
    tokenizer = target().tokenizer
    plain = tokenizer.decode(write(ids, "none"))
    stop = plain.split()[4]
    options = {"stop_strings": [stop], "tokenizer": tokenizer, "do_sample": False}
    theirs = target().model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, **options
    )
    found = write(ids, "mixed", **options)
    assert found == theirs[0, ids.shape[1] :].tolist()
    assert stop in tokenizer.decode(found)
    assert len(found) < 24


def test_text_streams_while_it_is_written():
    (ids,) = prompts(1)
    tokenizer = target().tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    thread = Thread(target=write, args=(ids, "mixed"), kwargs={"streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(write(ids, "none"))


def test_a_pipeline_writes_the_same_text():
    tokenizer = target().tokenizer
    pipe = pipeline("text-generation", model=target().model, tokenizer=tokenizer)
    messages = [{"role": "user", "content": "Name three colours."}]
    options = {"max_new_tokens": 16, "do_sample": False}
    method = functools.partial(specdec.method, target=target(), drafter="mixed")
    found = pipe(messages, custom_generate=method, **options)
    expected = pipe(messages, **options)
    assert found == expected


def test_a_conversation_goes_on_from_its_cache(monkeypatch):
    tokenizer, read = target().tokenizer, []
    messages = [{"role": "user", "content": "Name three colours."}]
    chat = functools.partial(
        tokenizer.apply_chat_template, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )  # fmt: skip
    prefill = target().prefill
    monkeypatch.setattr(
        target(), "prefill", lambda ids, *rest: read.append(ids.shape[1]) or prefill(ids, *rest)
    )
    options = {"max_new_tokens": 12, "return_dict_in_generate": True}
    ids = chat(messages)
    first = specdec.generate(target(), ids, "mixed", **options)
    answer = tokenizer.decode(first.sequences[0, ids.shape[1] :], skip_special_tokens=True)
    messages += [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And three more."},
    ]
    longer = chat(messages)
    again = specdec.generate(
        target(), longer, "mixed", past_key_values=first.past_key_values, **options
    )
    assert read[0] == ids.shape[1]
    assert read[1] <= longer.shape[1] - ids.shape[1]
    anew = specdec.generate(target(), longer, "none", **options)
    assert torch.equal(again.sequences, anew.sequences)
