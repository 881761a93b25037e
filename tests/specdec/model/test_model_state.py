"""Changes of a loaded model take effect at the next call, or raise an error that names them."""

import copy

import pytest
import torch
from torch import nn

import specdec
from specdec.drafters import LookupDrafter
from specdec.load import load_target
from specdec.model.cache import CACHE_NAME
from specdec.model.cpu_linear import PrepackedLinear
from specdec.session import Session
from tiny import library_greedy, random_prompt, tiny_model

PROMPT = random_prompt(12, 3)


def fresh(family="llama", **options):
    return copy.deepcopy(tiny_model(family, **options))


def written(target, prompt=PROMPT):
    ids = torch.tensor([prompt])
    out = specdec.generate(target, ids, "lookup", max_new_tokens=12, eos_token_id=[99])
    return out[0, len(prompt) :].tolist()


def in_place(model):
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(-1)


def past_autograd(model):
    model.model.layers[1].mlp.up_proj.weight.data.mul_(-2)


def other_storage(model):
    weight = model.model.layers[2].self_attn.q_proj.weight
    weight.data = -weight.data


def other_parameter(model):
    layer = model.model.layers[0].self_attn.k_proj
    layer.weight = nn.Parameter(-layer.weight.detach(), requires_grad=False)


def loaded_anew(model):
    other = tiny_model("llama", seed=5, dtype=model.dtype).state_dict()
    model.load_state_dict({k: v.clone() for k, v in other.items()}, assign=True)


def a_training_step(model):
    model.train()
    model(torch.tensor([PROMPT]), labels=torch.tensor([PROMPT])).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    model.zero_grad()
    model.eval()


CHANGES = [in_place, past_autograd, other_storage, other_parameter, loaded_anew, a_training_step]


@pytest.mark.parametrize("prepack", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_used_for_the_next_text(change, prepack):
    model = fresh(dtype=torch.float32)
    target = load_target(model, prepack=prepack)
    before = written(target)
    assert before == library_greedy(model, PROMPT, 12)
    change(model)
    after = written(target)
    stock = tiny_model("llama", seed=11, dtype=torch.float32)
    stock = copy.deepcopy(stock)
    stock.load_state_dict(model.state_dict())
    assert after == library_greedy(stock, PROMPT, 12)
    assert after != before, "a change that shows nothing"


def test_changed_inference_mode_weights_are_detected():
    with torch.inference_mode():
        model = copy.deepcopy(tiny_model("llama", dtype=torch.float32))
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        assert model.lm_head.weight.is_inference()
        target = load_target(model, prepack=True)
        before = written(target)
        model.model.layers[0].mlp.down_proj.weight.mul_(-1)
        after = written(target)
        assert after == library_greedy(model, PROMPT, 12) != before


def test_replaced_learned_positions_are_used():
    model = fresh("gpt2")
    target = load_target(model)
    before = written(target)
    positions = model.transformer.wpe
    positions.weight = nn.Parameter(positions.weight.detach().flip(0), requires_grad=False)
    assert written(target) == library_greedy(model, PROMPT, 12) != before


@pytest.mark.parametrize("change", [in_place, past_autograd, other_storage])
def test_cached_keys_of_earlier_weights_are_discarded(change):
    model = fresh()
    target = load_target(model)
    session = Session(target, "lookup")
    session.generate([PROMPT], max_new_tokens=6)
    change(model)
    longer = PROMPT + random_prompt(5, 9)
    assert session.generate([longer], max_new_tokens=12).tokens[0] == library_greedy(
        model, longer, 12
    )


def test_result_of_earlier_weights_continues_with_recomputed_keys():
    model = fresh()
    target = load_target(model)
    options = {"max_new_tokens": 6, "eos_token_id": [99], "return_dict_in_generate": True}
    drafter = LookupDrafter()
    out = specdec.generate(target, torch.tensor([PROMPT]), drafter, **options)
    in_place(model)
    again = specdec.generate(target, out.sequences, drafter, cache=out[CACHE_NAME], **options)
    text = out.sequences[0].tolist()
    assert again.sequences[0, len(text) :].tolist() == library_greedy(model, text, 6)


def test_cache_is_kept_while_weights_are_unchanged(monkeypatch):
    target = load_target(fresh())
    session = Session(target, "lookup")
    session.generate([PROMPT], max_new_tokens=6)
    cache = session.cache
    session.generate([[*PROMPT, 7, 8]], max_new_tokens=6)
    assert session.cache is cache
    assert target.changes == 0


def test_changed_thread_count_discards_the_cache():
    threads = torch.get_num_threads()
    target = load_target(fresh())
    session = Session(target, "lookup")
    session.generate([PROMPT], max_new_tokens=6)
    cache = session.cache
    try:
        torch.set_num_threads(threads + 1)
        session.generate([PROMPT], max_new_tokens=6)
    finally:
        torch.set_num_threads(threads)
    assert session.cache is not cache


def test_exact_is_certified_again_after_a_thread_count_change(monkeypatch):
    target = load_target(fresh(dtype=torch.float32))
    target.exact = True

    def refuse(target):
        raise ValueError("exact: no more")

    threads = torch.get_num_threads()
    monkeypatch.setattr("specdec.load.certify_exact", refuse)
    try:
        torch.set_num_threads(threads + 1)
        for _ in range(2):
            with pytest.raises(ValueError, match="exact: no more"):
                written(target)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.train(), r"call model.eval\(\)\), got training mode"),
        (lambda m: m.model.layers[1].mlp.train(), "training mode in model.layers.1.mlp"),
        (lambda m: m.bfloat16(), "as they were loaded, torch.float32 cpu, got torch.bfloat16 cpu"),
        (lambda m: m.model.layers[0].to("meta"), "got torch.float32 meta"),
        (lambda m: setattr(m.model, "norm", nn.Identity().eval()), "got another model.norm"),
        (lambda m: delattr(m.model.layers[0].mlp, "act_fn"), "got fewer"),
        (lambda m: m.resize_token_embeddings(70) and m.eval(), "load it again with load_target"),
    ],
    ids=["training", "partly", "dtype", "meta", "other module", "fewer modules", "vocabulary"],
)
@pytest.mark.parametrize("prepack", [False, True], ids=["plain", "packed"])
def test_unsupported_model_changes_are_rejected_by_name(change, message, prepack):
    model = fresh(dtype=torch.float32)
    target = load_target(model, prepack=prepack)
    change(model)
    with pytest.raises(ValueError, match=message):
        written(target)


def test_training_mode_during_generation_is_rejected():
    model = fresh()
    stream = Session(load_target(model), "plain").stream([PROMPT], max_new_tokens=8)
    next(stream)
    next(stream)
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        next(stream)


def test_autocast_is_rejected():
    target = load_target(fresh(dtype=torch.float32))
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match="autocast: expected off"),
    ):
        written(target)


def test_offloaded_and_multi_device_weights_are_rejected_in_one_line():
    import accelerate

    offloaded = accelerate.cpu_offload(fresh(), execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"got LlamaForCausalLM offloaded or on the meta device"):
        load_target(offloaded)
    with pytest.raises(ValueError, match="offloaded or on the meta device"):
        load_target(fresh().to("meta"))
    partly = fresh()
    partly.model.norm.to("meta")
    with pytest.raises(ValueError, match="offloaded or on the meta device"):
        load_target(partly)


def test_packed_layer_called_directly_follows_its_weight():
    model = fresh(dtype=torch.float32)
    load_target(model, prepack=True)
    ids = torch.tensor([PROMPT])
    for change in (in_place, other_storage, other_parameter):
        change(model)
        stock = copy.deepcopy(tiny_model("llama", dtype=torch.float32))
        stock.load_state_dict(model.state_dict())
        with torch.inference_mode():
            torch.testing.assert_close(model(ids).logits, stock(ids).logits, rtol=1e-4, atol=1e-4)
    half = model.half()
    with torch.inference_mode():
        assert half(ids).logits.dtype == torch.float16
    assert any(isinstance(m, PrepackedLinear) for m in model.modules())
