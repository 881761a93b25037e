"""Copies of packed targets, in this process and in others, write the same text and follow their own weights."""

import copy
import multiprocessing
import pickle

import pytest
import torch

import specdec
from specdec.load import load_target
from specdec.model.cache import CACHE_NAME
from specdec.model.cpu_linear import PrepackedLinear
from specdec.session import Session
from tiny import library_greedy, random_prompt, tiny_model

PROMPT = random_prompt(9, 2)


def packed(family="llama"):
    # A new one: once asked for hidden states, a model keeps hooks of the library that cannot be pickled.
    model = tiny_model.__wrapped__(family, dtype=torch.float32)
    return load_target(model, prepack=True)


def written(target):
    return Session(target, "lookup").generate([PROMPT], max_new_tokens=12).tokens[0]


def pickled(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_copied_target_generates_the_same_and_follows_its_own_weights(copied, family):
    target = packed(family)
    other = copied(target)
    assert other.prepacked
    assert written(other) == written(target)
    before = written(target)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.copy_(parameter.flip(0))
    assert written(other) == library_greedy(other.model, PROMPT, 12) != before
    assert written(target) == before


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copy_of_a_packed_model_is_an_ordinary_model(copied):
    model = packed().model
    other, ids = copied(model), torch.tensor([PROMPT])
    with torch.inference_mode():
        torch.testing.assert_close(other(ids).logits, model(ids).logits)
        assert other.double()(ids).logits.dtype == torch.float64
    assert set(other.state_dict()) == set(model.state_dict())
    layers = [m for m in other.modules() if isinstance(m, PrepackedLinear)]
    assert layers
    assert not any(a.product is b.product for a in layers for b in model.modules()
                   if isinstance(b, PrepackedLinear))  # fmt: skip


def test_copied_cache_continues_like_the_original():
    target = packed()
    options = {"max_new_tokens": 5, "eos_token_id": [99], "return_dict_in_generate": True}
    drafter = specdec.load_drafter("lookup", target)
    out = specdec.generate(target, torch.tensor([PROMPT]), drafter, **options)
    texts = []
    for past in (copy.deepcopy(out[CACHE_NAME]), out[CACHE_NAME]):
        assert past.made_for[0] is target
        again = specdec.generate(target, out.sequences, drafter, cache=past, **options)
        texts.append(again.sequences.tolist())
    assert texts[0] == texts[1]
    text = out.sequences[0].tolist()
    assert texts[0][0][len(text) :] == library_greedy(target.model, text, 5)


def test_target_can_be_sent_to_a_spawned_process():
    target = packed()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(written, [target]) == written(target)
