"""Draft models: tokens equal transformers' for any pair of models; models that do not fit are rejected."""

import pytest
import torch
from model_drafts import cut_model, drafter_of, save_with_letters
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from every_drafter import own_model, redrafter
from specdec import Session, load_target
from specdec.drafters import LookupDrafter, MixedDrafter, PlainDrafter, load_drafter
from specdec.drafters.lookahead import LookaheadDrafter
from specdec.drafters.model import ModelConfig, ModelDrafter
from specdec.drafters.recycling import RecyclingDrafter
from specdec.model.target import Target
from specdec.pickers import PathPicker
from specdec.sampling import Sampling
from tiny import (
    FAMILIES,
    POSITIONS,
    SEED,
    VOCABULARY,
    letters,
    library_greedy,
    library_sampled,
    random_prompt,
    tiny_model,
)

NEW = 20
LENGTHS = (5, 19, 1, 11)
SHAPES = pytest.mark.parametrize("width", [1, 3], ids=["chain", "beams"])


# The text


@SHAPES
@pytest.mark.parametrize("at", range(len(FAMILIES)), ids=FAMILIES)
def test_tokens_equal_transformers_for_every_pair_of_models(at, width):
    model = tiny_model(FAMILIES[at])
    target = Target(model)
    rows = at % 4 + 1
    prompts = [random_prompt(length, 50 + length) for length in LENGTHS[:rows]]
    expected = [library_greedy(model, prompt, NEW) for prompt in prompts]
    sampled = [library_sampled(model, p, NEW, stream) for stream, p in enumerate(prompts)]
    other = Target(tiny_model(FAMILIES[(at + 1) % len(FAMILIES)], seed=1))
    cut = Target(cut_model(model, 2))
    for small in (target, cut, other):
        session = Session(target, drafter_of(target, small, width=width), max_nodes=16)
        assert session.generate(prompts, max_new_tokens=NEW).tokens == expected
        walk = PathPicker(Sampling(SEED, torch.arange(rows)))
        assert session.generate(prompts, max_new_tokens=NEW, picker=walk).tokens == sampled


@SHAPES
def test_rows_that_end_early_do_not_affect_other_rows(width):
    model, small = tiny_model("qwen3", seed=2), Target(tiny_model("llama"))
    target = Target(model)
    prompts = [random_prompt(length, length) for length in (3, 12, 6, 9)]
    full = [library_greedy(model, p, NEW) for p in prompts]
    eos = [full[0][0], full[2][5]]  # one row ends with its first token
    expected = [library_greedy(model, p, NEW, eos) for p in prompts]
    for drafts in (small, target):
        session = Session(target, drafter_of(target, drafts, width=width), max_nodes=12)
        for _ in range(2):
            written = session.generate(prompts, max_new_tokens=NEW, eos_token_ids=eos)
            assert written.tokens == expected
    first = session.generate(prompts, max_new_tokens=1).tokens  # ends before anything is drafted
    assert first == [library_greedy(model, p, 1) for p in prompts]


def test_tokens_of_unions_equal_transformers():
    model = tiny_model("llama", seed=4)
    target, cut = Target(model), Target(cut_model(model, 2))
    prompts = [random_prompt(length, 9) * 2 for length in (4, 9)]
    expected = [library_greedy(model, prompt, NEW) for prompt in prompts]
    sampled = [library_sampled(model, p, NEW, stream) for stream, p in enumerate(prompts)]
    others = [
        LookupDrafter(), redrafter(target), LookaheadDrafter(),
        RecyclingDrafter(vocabulary_size=VOCABULARY), drafter_of(target, target),
    ]  # fmt: skip
    for other in others:
        union = MixedDrafter([drafter_of(target, cut, width=2), other])
        session = Session(target, union, max_nodes=24)
        assert session.generate(prompts, max_new_tokens=NEW).tokens == expected
        walk = PathPicker(Sampling(SEED, torch.arange(2)))
        assert session.generate(prompts, max_new_tokens=NEW, picker=walk).tokens == sampled


def test_logits_processors_act_as_without_a_drafter():
    target = Target(tiny_model("llama", seed=3))
    prompts = [random_prompt(length, length) for length in (6, 13)]

    def write(drafter):
        processors = [LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.4)]) for _ in prompts]
        picker = PathPicker(Sampling(SEED, torch.arange(2)), processors)
        session = Session(target, drafter, max_nodes=16)
        return session.generate(prompts, max_new_tokens=NEW, picker=picker).tokens

    assert write(own_model(target)) == write(PlainDrafter())


def test_copies_of_a_prompt_are_drafted_separately():
    target = Target(tiny_model("llama", seed=3))
    texts = [
        Session(target, drafter).generate(
            [random_prompt(7, 1), random_prompt(3, 2)], copies=2, max_new_tokens=NEW,
            picker=PathPicker(Sampling(SEED, torch.arange(4))),
        ).tokens
        for drafter in (PlainDrafter(), own_model(target))
    ]  # fmt: skip
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts[0]}) == 4


def test_exact_bfloat16_tokens_equal_the_plain_loop():
    target = load_target(tiny_model.__wrapped__("llama-16", 1, torch.bfloat16), exact=True)
    small = load_target(tiny_model.__wrapped__("qwen3-16", 2, torch.bfloat16))
    for prompts in ([random_prompt(9, 1)], [random_prompt(9, 1), random_prompt(4, 2)]):
        expected = Session(target, PlainDrafter()).generate(prompts, max_new_tokens=NEW).tokens
        for drafts in (small, target):
            for width in (1, 3):
                session = Session(target, drafter_of(target, drafts, width=width), max_nodes=16)
                assert session.generate(prompts, max_new_tokens=NEW).tokens == expected


# Names, and what is refused


def test_draft_model_loads_from_a_folder(tmp_path):
    model = tiny_model("llama", dtype=torch.float32)
    target = load_target(save_with_letters(model, tmp_path / "whole"))
    folder = save_with_letters(cut_model(model, 2), tmp_path / "a+b")
    prompt = random_prompt(9, 1)
    drafter = load_drafter(f"model:{folder}", target, length=3, width=2)
    assert isinstance(drafter, ModelDrafter)
    assert (drafter.config.length, drafter.config.width) == (3, 2)
    assert len(drafter.small.layer_types) == 2 and drafter.small.prepacked == target.prepacked
    plain = save_with_letters(cut_model(model, 2), tmp_path / "cut")
    for name in (f"model:{folder}", f"model:{plain}+lookup"):
        written = Session(target, name).generate([prompt], max_new_tokens=NEW)
        assert written.tokens == [library_greedy(model, prompt, NEW)]


def test_model_with_another_vocabulary_is_rejected(tmp_path):
    model = tiny_model("llama", dtype=torch.float32)
    target = load_target(save_with_letters(model, tmp_path / "whole"))
    other = letters()
    other.add_tokens(["word"])
    model.save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError,
        match=f"'model:{tmp_path}/other'.*model: expected the target's vocabulary of 61 tokens, in which 'word' is none, "
        "got a LlamaForCausalLM with 62 tokens, in which 'word' is 61",
    ):
        load_drafter(f"model:{tmp_path}/other", target)
    with pytest.raises(ValueError, match="'model:nowhere'"):
        load_drafter("model:nowhere", target)
    with pytest.raises(ValueError, match="drafter: expected model:NAME, got 'model'"):
        load_drafter("model", target)
    small = tiny_model.__wrapped__("llama", dtype=torch.float32)
    small.resize_token_embeddings(VOCABULARY + 3)
    small.eval()
    with pytest.raises(
        ValueError, match="model: expected the target's vocabulary of 61 tokens, got a Llama.* 64"
    ):
        ModelDrafter(Target(model), Target(small))
    elsewhere = Target(model)
    elsewhere.device = torch.device("meta")
    with pytest.raises(ValueError, match="model: expected it on cpu, got one on meta"):
        ModelDrafter(target, elsewhere)


@pytest.mark.parametrize("more", [3, -3], ids=["padded head", "padded head of the target"])
def test_equal_tokenizers_with_padded_heads_fit(more):
    model = tiny_model("llama")
    target, small = Target(model, letters()), tiny_model.__wrapped__("qwen2", seed=1)
    small.resize_token_embeddings(VOCABULARY + more)
    small.eval()
    with torch.no_grad():
        small.get_output_embeddings().weight[VOCABULARY:] *= 100  # what is likeliest is no token
    drafter = drafter_of(target, Target(small, letters()), width=2)
    prompts = [random_prompt(9, 1), list(range(VOCABULARY))]
    written = Session(target, drafter).generate(prompts, max_new_tokens=NEW)
    assert written.tokens == [library_greedy(model, prompt, NEW) for prompt in prompts]


@pytest.mark.parametrize(
    "change", [{"length": 0}, {"width": 17}, {"min_prob": -0.1}, {"min_step_prob": 1.5}]
)
def test_error_names_the_setting_that_is_out_of_range(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}: expected"):
        ModelConfig(**change)


def test_draft_never_exceeds_the_last_position_of_the_target():
    model = tiny_model("llama", seed=4)
    target = Target(model)
    prompts = [random_prompt(POSITIONS - 1, 7), random_prompt(POSITIONS - 9, 8)]
    expected = [library_greedy(model, p, POSITIONS - len(p)) for p in prompts]
    for drafter in (drafter_of(target, target), own_model(target)):
        written = Session(target, drafter, max_nodes=16).generate(prompts, max_new_tokens=40)
        assert written.tokens == expected
