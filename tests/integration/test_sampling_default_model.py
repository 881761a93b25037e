"""Sampling with the default model: the same text with any drafter and through every interface."""

import functools
from threading import Thread

import pytest
import torch
from transformers import TextIteratorStreamer, pipeline

import specdec
from bench.decoding.sampling_equality import DRAFTERS, SETTINGS, compare, shortest_prompts
from specdec.load import load_target
from specdec.model.cache import CACHE_NAME

pytestmark = pytest.mark.model


@functools.cache
def target():
    return load_target()


def prompts(count):
    return shortest_prompts(target(), count)


def write(ids, drafter, **options):
    out = specdec.generate(
        target(), ids, drafter, attention_mask=torch.ones_like(ids), **{"max_new_tokens": 24, **options}
    )  # fmt: skip
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_sampled_tokens_do_not_depend_on_the_drafter(setting, whole):
    """Few texts per setting; `bench/decoding/sampling_equality.py` writes sixty."""
    count = 2 if whole else 1
    found = compare(target(), prompts(count), setting, DRAFTERS, new=24)
    assert len(found) == 3 * count
    assert all(text.parts is None for text in found)


def test_stop_strings_end_the_output_as_in_transformers():
    (ids,) = prompts(1)
    tokenizer = target().tokenizer
    plain = tokenizer.decode(write(ids, "plain"))
    stop = plain.split()[4]
    options = {"stop_strings": [stop], "tokenizer": tokenizer, "do_sample": False}
    theirs = target().model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, **options
    )
    found = write(ids, "mixed", **options)
    assert found == theirs[0, ids.shape[1] :].tolist()
    assert stop in tokenizer.decode(found)
    assert len(found) < 24


def test_streamer_receives_the_generated_text():
    (ids,) = prompts(1)
    tokenizer = target().tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    thread = Thread(target=write, args=(ids, "mixed"), kwargs={"streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(write(ids, "plain"))


def test_text_generation_pipeline_gives_the_same_text():
    tokenizer = target().tokenizer
    pipe = pipeline("text-generation", model=target().model, tokenizer=tokenizer)
    messages = [{"role": "user", "content": "Name three colours."}]
    options = {"max_new_tokens": 16, "do_sample": False}
    method = functools.partial(specdec.method, target=target(), drafter="mixed")
    found = pipe(messages, custom_generate=method, **options)
    expected = pipe(messages, **options)
    assert found == expected


def test_second_chat_turn_prefills_only_new_tokens(monkeypatch):
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
        target(), longer, "mixed", **{CACHE_NAME: first[CACHE_NAME]}, **options
    )
    assert read[0] == ids.shape[1]
    assert read[1] <= longer.shape[1] - ids.shape[1]
    anew = specdec.generate(target(), longer, "plain", **options)
    assert torch.equal(again.sequences, anew.sequences)
