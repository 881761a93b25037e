"""PEFT adapters that change between texts apply to the next text."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import every_drafter
import specdec
from specdec.load import load_target
from specdec.session import Session
from tiny import library_greedy, random_prompt, tiny_model

# The library's own, from within PEFT.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
PROMPT = random_prompt(12, 3)
NEW = 12


def adapted(**options):
    torch.manual_seed(4)
    lora = LoraConfig(
        r=4, lora_alpha=32, init_lora_weights=False, target_modules=["q_proj", "v_proj", "up_proj"],
        task_type="CAUSAL_LM", **options,
    )  # fmt: skip
    model = get_peft_model(copy.deepcopy(tiny_model("llama", dtype=torch.float32)), lora, "first")
    model.add_adapter("second", lora)
    return model.eval()


def library(model, prompt):
    return library_greedy(model.get_base_model(), prompt, NEW)


def stronger(model):
    for module in model.modules():
        if hasattr(module, "merged_adapters") and "first" in module.scaling:
            module.set_scale("first", 5.0)


CHANGES = {
    "switched": lambda model: model.set_adapter("second"),
    "off": lambda model: model.base_model.disable_adapter_layers(),
    "merged": lambda model: model.merge_adapter(),
    "stronger": stronger,
}


@pytest.mark.parametrize("prepack", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_tokens_and_cache_follow_adapter_changes(change, prepack):
    model = adapted()
    target = load_target(model, prepack=prepack)
    session = Session(target, "lookup")
    assert session.generate([PROMPT], max_new_tokens=NEW).tokens[0] == library(model, PROMPT)
    changes = target.changes
    change(model)
    model.eval()
    longer = [*PROMPT, 7, 8]
    assert session.generate([longer], max_new_tokens=NEW).tokens[0] == library(model, longer)
    assert target.changes == changes + 1


def test_every_drafter_gives_the_adapted_models_tokens():
    model = adapted()
    target = load_target(model)
    for make in every_drafter.DRAFTERS:
        written = Session(target, make(target)).generate([PROMPT], max_new_tokens=NEW).tokens[0]
        assert written == library(model, PROMPT), make.__name__


def test_adapter_added_after_loading_is_rejected():
    model = adapted()
    target = load_target(model)
    model.add_adapter("third", LoraConfig(target_modules=["o_proj"], task_type="CAUSAL_LM"))
    model.eval()
    with pytest.raises(ValueError, match="expected the modules it was loaded with"):
        specdec.generate(target, torch.tensor([PROMPT]), "lookup", max_new_tokens=4)


def test_activated_lora_is_rejected_even_if_inactive():
    model = adapted()
    model.add_adapter(
        "third",
        LoraConfig(
            target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[5, 6]
        ),
    )
    for named in (model, model.get_base_model()):
        with pytest.raises(ValueError, match="got 'third' with alora_invocation_tokens"):
            load_target(named.eval())


def test_adapter_on_the_head_restricts_drafting_to_lookup():
    lora = LoraConfig(init_lora_weights=False, target_modules=["lm_head"], task_type="CAUSAL_LM")
    base = copy.deepcopy(tiny_model("llama", dtype=torch.float32))
    model = get_peft_model(base, lora).eval()
    target = load_target(model)
    written = Session(target, "best").generate([PROMPT], max_new_tokens=NEW).tokens[0]
    assert written == library(model, PROMPT)
    with pytest.raises(ValueError, match="expected a plain head"):
        every_drafter.kangaroo(target)
