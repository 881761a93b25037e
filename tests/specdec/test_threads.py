"""Several threads, callbacks and other code around one model: the right text or a clear error, and the model as it was."""

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

import every_drafter
import specdec
from specdec.drafters import PlainDrafter
from specdec.load import load_target
from specdec.model.attention import ATTENTION
from specdec.model.certificate import own_logits
from specdec.session import Session
from tiny import library_greedy, random_prompt, tiny_model

NEW = 12


def fresh(**options):
    return copy.deepcopy(tiny_model("llama-16", **options))


def run_in_threads(*works):
    """Run functions side by side; what each returned or raised."""

    def caught(work):
        try:
            return work()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(caught, works))


def test_pass_of_another_thread_waits_for_the_lock():
    model = fresh()
    target = load_target(model)
    prompts = [random_prompt(8, seed) for seed in (1, 2)]
    inside, outside = threading.Event(), threading.Event()

    def linger(*_):
        if not inside.is_set():
            inside.set()
            outside.wait(0.3)  # nothing sets it: the other thread stands before its own pass

    model.model.layers[1].register_forward_pre_hook(linger)

    def write(prompt, first):
        if not first:
            inside.wait()
        return Session(target, "lookup").generate([prompt], max_new_tokens=NEW).tokens[0]

    texts = run_in_threads(lambda: write(prompts[0], True), lambda: write(prompts[1], False))
    assert texts == [library_greedy(model, prompt, NEW) for prompt in prompts]
    assert model.config._attn_implementation == "sdpa"


def test_concurrent_requests_give_correct_tokens_and_leave_the_model_unchanged():
    model = fresh(dtype=torch.float32)
    target = load_target(model, prepack=True)
    drafters = [make(target) for make in every_drafter.DRAFTERS]
    prompts = [random_prompt(length, length) for length in range(3, 13)]
    right = [Session(target, "plain").generate([p], max_new_tokens=NEW).tokens[0] for p in prompts]
    before = copy.deepcopy(model.state_dict())

    def requests(thread):
        choice, wrong, done = Random(thread), [], 0
        for _ in range(50):
            at = choice.randrange(len(prompts))
            session = Session(target, choice.choice(drafters), max_nodes=choice.choice([2, 8, 16]))
            stream = session.stream([prompts[at]], max_new_tokens=NEW)
            text, most = [], choice.choice([1, 3, NEW, NEW])
            for (emitted,) in stream:
                text += emitted.tokens
                if len(text) >= most:
                    break
            stream.close()
            done += 1
            if text != right[at][: len(text)]:
                wrong.append((prompts[at], text))
        return done, wrong

    threads = run_in_threads(*(lambda thread=thread: requests(thread) for thread in range(4)))
    assert threads == [(50, [])] * 4
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert target.changes == 0


def test_targets_of_one_model_share_a_lock():
    model = fresh()
    targets = [load_target(model) for _ in range(2)]
    prompts = [random_prompt(9, seed) for seed in range(2)]

    def write(at):
        return [
            Session(targets[at], "lookup").generate([prompts[at]], max_new_tokens=NEW).tokens[0]
            for _ in range(5)
        ]

    for at, texts in enumerate(run_in_threads(lambda: write(0), lambda: write(1))):
        assert texts == [library_greedy(model, prompts[at], NEW)] * 5


def test_loading_during_a_decode_is_correct():
    model = fresh()
    target, prompt = load_target(model), random_prompt(9, 4)
    own = own_logits(model)

    def load():
        return [
            all(torch.equal(a, b) for a, b in zip(own_logits(model), own, strict=True))
            for _ in range(10)
        ]

    def write():
        return [
            Session(target, "lookup").generate([prompt], max_new_tokens=NEW).tokens[0]
            for _ in range(5)
        ]

    loaded, texts = run_in_threads(load, write)
    assert loaded == [True] * 10
    assert texts == [library_greedy(model, prompt, NEW)] * 5


def test_session_in_use_rejects_another_thread():
    inside, outside = threading.Event(), threading.Event()

    class Lingering(PlainDrafter):
        def draft(self, state, budget):
            inside.set()
            outside.wait()
            return super().draft(state, budget)

    model = fresh()
    session = Session(load_target(model), Lingering())
    prompt = random_prompt(8, 1)

    def second():
        inside.wait()
        try:
            return next(session.stream([prompt], max_new_tokens=2))
        finally:
            outside.set()

    first, other = run_in_threads(
        lambda: session.generate([prompt], max_new_tokens=NEW).tokens[0], second
    )
    assert first == library_greedy(model, prompt, NEW)
    assert isinstance(other, RuntimeError)
    assert "one call at a time" in str(other)


def test_callback_that_reenters_its_session_is_rejected():
    target = load_target(fresh())
    session = Session(target, "plain")
    prompt = random_prompt(8, 1)
    session.generate([prompt], max_new_tokens=2)

    def again(row, ids):
        session.generate([prompt], max_new_tokens=2)

    with pytest.raises(RuntimeError, match="one call at a time"):
        session.generate([prompt], max_new_tokens=4, stops=again)


def test_new_stream_on_a_shared_cache_ends_the_older_stream():
    target = load_target(fresh())
    first = Session(target, "plain")
    stream = first.stream([random_prompt(8, 1)], max_new_tokens=8)
    next(stream)
    second = Session(target, first.drafter, cache=first.cache)
    second.generate([random_prompt(8, 1)], max_new_tokens=4)
    with pytest.raises(RuntimeError, match="one that a newer stream replaced"):
        next(stream)


def test_callback_may_use_the_model():
    model = fresh()
    target, prompt = load_target(model), random_prompt(8, 1)
    asked = []

    class Asks(BaseStreamer):
        def put(self, value):
            asked.append(library_greedy(model, prompt, 2))
            asked.append(Session(target, "lookup").generate([prompt], max_new_tokens=2).tokens[0])

        def end(self):
            pass

    out = specdec.generate(
        target, torch.tensor([prompt]), "lookup", max_new_tokens=NEW, eos_token_id=[99], streamer=Asks()
    )  # fmt: skip
    assert out[0, len(prompt) :].tolist() == library_greedy(model, prompt, NEW)
    assert asked == [library_greedy(model, prompt, 2)] * len(asked)


def test_plain_forward_during_a_pass_raises():
    model = fresh()
    target, ids = load_target(model), torch.tensor([random_prompt(8, 1)])
    hook = model.model.layers[1].register_forward_pre_hook(lambda *_: model(ids))
    with pytest.raises(RuntimeError, match="a plain forward"):
        Session(target, "plain").generate(ids.tolist(), max_new_tokens=2)
    hook.remove()
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("chosen", ["eager", "sdpa"])
def test_attention_switched_during_a_pass_raises_and_is_kept(chosen):
    model = fresh()
    target = load_target(model)
    hook = model.model.layers[1].register_forward_pre_hook(
        lambda *_: model.set_attn_implementation(chosen)
    )
    with pytest.raises(RuntimeError, match="got another attention in layer 1"):
        Session(target, "plain").generate([random_prompt(8, 1)], max_new_tokens=2)
    hook.remove()
    assert model.config._attn_implementation == chosen


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_attention_setting_is_restored_after_an_error(error):
    model = fresh()
    target = load_target(model)

    def fail(*_):
        assert model.config._attn_implementation == ATTENTION
        raise error

    hook = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(error):
        Session(target, "plain").generate([random_prompt(8, 1)], max_new_tokens=2)
    hook.remove()
    assert model.config._attn_implementation == "sdpa"
    prompt = random_prompt(8, 1)
    written = Session(target, "plain").generate([prompt], max_new_tokens=NEW).tokens[0]
    assert written == library_greedy(model, prompt, NEW)


def test_packed_layers_are_thread_safe():
    model = fresh(dtype=torch.float32)
    load_target(model, prepack=True)
    inputs = [torch.tensor([random_prompt(7, seed)]) for seed in range(4)]
    with torch.inference_mode():
        right = [model(ids).logits for ids in inputs]

    def forward(at):
        ended = time.monotonic() + 1
        with torch.inference_mode():
            results = []
            while time.monotonic() < ended and len(results) < 30:
                results.append(torch.equal(model(inputs[at]).logits, right[at]))
            return all(results)

    assert run_in_threads(*(lambda at=at: forward(at) for at in range(4))) == [True] * 4
