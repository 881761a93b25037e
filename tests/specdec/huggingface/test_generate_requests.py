"""What can be asked of `specdec.generate`: ways in, going on, and inputs that are refused by name."""

import functools
import re
from pathlib import Path

import pytest
import torch
from transformers import BatchEncoding, DynamicCache, GenerationConfig

import specdec
from specdec.drafters import LookupDrafter
from specdec.model.cache import CACHE_NAME, CACHE_NAMES, TreeCache
from specdec.model.target import Target
from specdec.session import Session
from tiny import POSITIONS, VOCABULARY, letters, library_greedy, random_prompt, tiny_model

NEVER = [VOCABULARY + 1]
RECIPE = Path(__file__).parents[3] / "docs" / "recipe"
PROMPTS = [random_prompt(4, 21) * 2, random_prompt(11, 22), random_prompt(3, 23) * 4]


@functools.cache
def target_of(seed=6):
    return Target(tiny_model("llama", seed=seed))


def library(prompt, count):
    return library_greedy(tiny_model("llama", seed=6), prompt, count)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_later_call_continues_from_the_returned_cache(name, monkeypatch):
    target, read = target_of(), []
    prefill = target.prefill
    monkeypatch.setattr(
        target, "prefill", lambda ids, *rest: read.append(ids.shape[1]) or prefill(ids, *rest)
    )
    options = {"max_new_tokens": 8, "eos_token_id": NEVER, "return_dict_in_generate": True}
    first = specdec.generate(target, torch.tensor([PROMPTS[1]]), "lookup", **options)
    longer = torch.cat([first.sequences, torch.tensor([PROMPTS[2]])], 1)
    again = specdec.generate(target, longer, "lookup", **{name: first[CACHE_NAME]}, **options)
    assert read == [len(PROMPTS[1]), len(PROMPTS[2]) + 1]
    tokens = again.sequences[0, longer.shape[1] :].tolist()
    assert tokens == library(longer[0].tolist(), 8)
    # Another drafter has read nothing yet: it begins anew, and the text is the same.
    other = specdec.generate(target, longer, "plain", **{name: again[CACHE_NAME]}, **options)
    assert torch.equal(other.sequences, again.sequences)
    assert read[-1] == longer.shape[1]


def test_result_has_the_cache_under_every_name_transformers_uses():
    options = {"max_new_tokens": 2, "eos_token_id": NEVER, "return_dict_in_generate": True}
    ours = specdec.generate(target_of(), PROMPTS[:1], "plain", **options)
    theirs = target_of().model.generate(torch.tensor(PROMPTS[:1]), **options)
    assert list(ours) == list(theirs)
    names = [name for name in CACHE_NAMES if hasattr(theirs, name)]
    assert CACHE_NAME in names
    for name in names:
        assert isinstance(getattr(ours, name), TreeCache)
        assert ours[name] is ours[CACHE_NAME]


def test_custom_generate_continues_from_a_returned_cache():
    model, target = tiny_model("llama", seed=6), target_of()
    options = {"max_new_tokens": 8, "eos_token_id": NEVER, "return_dict_in_generate": True}
    options |= {"custom_generate": specdec.method, "drafter": "lookup", "target": target}
    first = model.generate(torch.tensor([PROMPTS[1]]), **options)
    again = model.generate(first.sequences, **{CACHE_NAME: first[CACHE_NAME]}, **options)
    assert again[CACHE_NAME] is first[CACHE_NAME]
    assert again.sequences[0, first.sequences.shape[1] :].tolist() == library(
        first.sequences[0].tolist(), 8
    )


def test_custom_generate_callable_gives_the_same_tokens():
    model, ids = tiny_model("llama", seed=6), torch.tensor([PROMPTS[1]])
    options = {"max_new_tokens": 9, "eos_token_id": NEVER}
    expected = library(PROMPTS[1], 9)
    out = model.generate(
        ids, custom_generate=specdec.method, drafter="lookup", target=target_of(), **options
    )
    assert out[0, ids.shape[1] :].tolist() == expected
    bound = functools.partial(specdec.method, drafter="lookup")
    out = model.generate(ids, custom_generate=bound, **options)
    assert out[0, ids.shape[1] :].tolist() == expected


def test_custom_generate_folder_runs():
    model, ids = tiny_model("llama", seed=6), torch.tensor([PROMPTS[1]])
    out = model.generate(
        ids, custom_generate=str(RECIPE), trust_remote_code=True, drafter="lookup", max_new_tokens=9,
        eos_token_id=NEVER,
    )  # fmt: skip
    assert out[0, ids.shape[1] :].tolist() == library(PROMPTS[1], 9)


def test_input_ids_may_be_lists_and_drafter_and_model_may_be_paths(tmp_path):
    target, expected = target_of(), [library(p, 6) for p in PROMPTS]
    width = max(map(len, PROMPTS))
    options = {"max_new_tokens": 6, "eos_token_id": NEVER, "pad_token_id": 0}
    for rows in (
        PROMPTS,
        tuple(map(torch.tensor, PROMPTS)),
        [torch.tensor(p).int() for p in PROMPTS],
    ):
        out = specdec.generate(target, rows, Path("lookup"), **options)
        assert out[:, width:].tolist() == expected
    assert isinstance(Session(target, Path("lookup")).drafter, LookupDrafter)
    letters().save_pretrained(tmp_path)
    target.model.save_pretrained(tmp_path)
    loaded = specdec.load_target(tmp_path, dtype=torch.float64)
    assert Session(loaded, "plain").generate([PROMPTS[0]], max_new_tokens=6).tokens == expected[:1]


def test_stop_strings_are_read_from_arguments_and_both_configurations():
    model, prompt = tiny_model("llama", seed=6), PROMPTS[1]
    text = library(prompt, 9)
    cases = {
        "argument": {"stop_strings": letters().decode(text[2:4])},
        "configuration": {"generation_config": GenerationConfig(stop_strings=letters().decode(text[3:5]))},
        "model": {},
    }  # fmt: skip
    model.generation_config.stop_strings = [letters().decode(text[4:6])]
    try:
        for count, (name, options) in enumerate(cases.items(), 4):
            out = specdec.generate(
                target_of(), [prompt], "lookup", tokenizer=letters(), max_new_tokens=9, eos_token_id=NEVER,
                **options,
            )  # fmt: skip
            assert out[0, len(prompt) :].tolist() == text[:count], name
        assert model.generation_config.stop_strings == [letters().decode(text[4:6])]
        with pytest.raises(ValueError, match="tokenizer: expected one for stop_strings, got none"):
            specdec.generate(target_of(), [prompt], "plain")
    finally:
        model.generation_config.stop_strings = None


@pytest.mark.parametrize(
    ("name", "value"), [("cache_implementation", "paged"), ("token_healing", True)]
)
def test_other_generation_modes_are_rejected_in_arguments_and_configuration(
    name, value, monkeypatch
):
    target = target_of()
    monkeypatch.setattr(
        target.model, "generate", lambda *_, **__: pytest.fail("the library was asked")
    )
    config = GenerationConfig(**{name: value})
    for options in ({name: value}, {"generation_config": config}):
        with pytest.raises(
            ValueError, match=f"{name}: expected no value, as it is not supported, got"
        ):
            specdec.generate(target, PROMPTS[:1], "plain", **options)
    monkeypatch.setattr(target.model.generation_config, name, value)
    with pytest.raises(ValueError, match=f"{name}: expected no value, as it is not supported, got"):
        specdec.generate(target, PROMPTS[:1], "plain")


def test_legacy_hybrid_cache_implementation_is_accepted(monkeypatch):
    target = target_of()
    monkeypatch.setattr(target.model.generation_config, "cache_implementation", "hybrid")
    out = specdec.generate(target, PROMPTS[:1], "plain", max_new_tokens=6, eos_token_id=NEVER)
    assert out[0, len(PROMPTS[0]) :].tolist() == library(PROMPTS[0], 6)


def test_warning_names_the_row_that_reaches_the_last_position(recwarn):
    prompts = [random_prompt(POSITIONS - 3, 5), random_prompt(POSITIONS - 20, 6)]
    options = {"eos_token_id": NEVER, "pad_token_id": 0}
    out = specdec.generate(target_of(), prompts, "lookup", max_new_tokens=9, **options)
    text = library(prompts[0], 3)
    assert out[0, POSITIONS - 3 :].tolist() == text + 6 * [0]
    found = [str(w.message) for w in recwarn if "max_new_tokens: expected" in str(w.message)]
    assert found == [
        f"max_new_tokens: expected at most 3, as the model has {POSITIONS} positions, got 9; row 0 ends there"
    ]
    # Not where a text ends by itself, nor where it was not to be longer.
    recwarn.clear()
    specdec.generate(
        target_of(), prompts[:1], "plain", max_new_tokens=9, eos_token_id=text[2], pad_token_id=0
    )
    specdec.generate(target_of(), prompts[:1], "plain", max_new_tokens=3, **options)
    assert not [w for w in recwarn if "max_new_tokens: expected" in str(w.message)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2, "do_sample": True}, "generation_config: .* got beam_sample"),
        ({"cache_implementation": "static"}, "cache_implementation: .* got 'static'"),
        ({"use_cache": False}, "use_cache: expected True, got False"),
        ({"position_ids": torch.tensor([[3, 4]])}, "position_ids: expected those that follow from attention_mask"),
        ({"custom_generate": "somewhere"}, "custom_generate"),
        ({"do_sample": True, "seed": -1}, r"seed: expected 0 to 2\*\*64 - 1, got -1"),
        ({"do_sample": True, "seed": "a"}, "seed: expected an integer, got 'a'"),
        ({"do_sample": True, "seed": 1.5}, "seed: expected an integer, got 1.5"),
        ({"seed": 5}, "seed: expected none without do_sample, got 5"),
        ({"streams": [1]}, r"streams: expected none without do_sample, got \[1\]"),
        ({"do_sample": True, "streams": [1, 2]}, r"streams: expected one per row, 1, got \[1, 2\]"),
        ({"do_sample": True, "streams": 1}, "streams: expected one per row, 1, got 1"),
        ({"do_sample": True, "streams": [0.5]}, r"streams: expected integers, got \[0.5\]"),
        ({"do_sample": True, "streams": [1 << 32]}, "streams: expected numbers from 0"),
        ({"stop_strings": ["a"]}, "tokenizer"),
        ({"max_nodes": 257}, "max_nodes: expected 1 to 256, got 257"),
        ({"drafter": "unknown"}, "drafter: expected one of"),
        ({"drafter": Path("/nowhere")}, "drafter: expected one of .* got '/nowhere'"),
        ({"drafter": None}, "drafter: expected a name, a folder or a drafter, got None"),
        ({"drafter": LookupDrafter}, "drafter: expected a name, a folder or a drafter, got <class"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask: expected shape \[1, 2\], got \[1, 3\]"),
        ({"attention_mask": [[1, 1]]}, "attention_mask: expected a tensor, got list"),
        ({"attention_mask": torch.zeros(1, 2)}, "attention_mask: expected a token in every row, got none in row 0"),
        ({"nonsense": 3}, "nonsense"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)  # fmt: skip
def test_error_names_unsupported_options(options, message):
    given = {"drafter": "plain", "max_new_tokens": 4, **options}
    with pytest.raises((TypeError, ValueError), match=message):
        specdec.generate(target_of(), torch.tensor([[3, 4]]), **given)


IDS = torch.tensor([[3, 4]])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (IDS.to("meta"), "expected device cpu, got meta"),
        ([IDS[0], IDS[0].to("meta")], "expected all rows on one device, got ['cpu', 'meta']"),
        (IDS[0], "expected shape [B, L], got [2]"),
        (IDS[:, :0], "expected at least one token, got shape [1, 0]"),
        (IDS.float(), "expected integers, got torch.float32"),
        (IDS + VOCABULARY - 4, f"expected ids from 0 to {VOCABULARY - 1}, got {VOCABULARY - 1} to {VOCABULARY} in row 0"),
        (torch.full((1, POSITIONS), 5), f"expected fewer tokens than the model's {POSITIONS} positions, got {POSITIONS} in row 0"),
        ([], "expected at least one row, got none"),
        ([3, 4], "expected a list of rows, got 3 as row 0"),
        ([[3], []], "expected at least one token, got none in row 1"),
        ([[3], [0.5]], "expected integers, got torch.float32"),
        (["What is"], "expected integers, got 'What is' in row 0"),
        ("What is", "expected a tensor or a list of rows, got str"),
        (None, "expected a tensor or a list of rows, got NoneType"),
        ({"input_ids": IDS}, "expected a tensor or a list of rows, got dict; unpack it"),
        (BatchEncoding({"input_ids": IDS}), "got BatchEncoding; unpack it: generate(model, **inputs)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_invalid_input_ids_are_rejected(ids, message):
    with pytest.raises((TypeError, ValueError), match="^input_ids: .*" + re.escape(message)):
        specdec.generate(target_of(), ids, "plain", max_new_tokens=4)


def test_attention_mask_with_list_inputs_is_rejected():
    with pytest.raises(ValueError, match="attention_mask: expected none beside a list"):
        specdec.generate(target_of(), [IDS[0]], "plain", attention_mask=torch.ones(1, 2))


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_cache_of_another_type_or_target_is_rejected(name):
    target, ids = target_of(), torch.tensor([[3, 4, 5]])
    options = {"max_new_tokens": 4, "eos_token_id": NEVER, "return_dict_in_generate": True}
    filled = DynamicCache()
    target.model(ids[:, :2], **{CACHE_NAME: filled})
    # What an empty one would hold afterwards, a caller may count on.
    for past in (filled, DynamicCache()):
        with pytest.raises(ValueError, match=f"{name}: .* got DynamicCache"):
            specdec.generate(target, ids, "plain", **{name: past}, **options)
        with pytest.raises(ValueError, match=f"{CACHE_NAME}: .* got DynamicCache"):
            target.model.generate(
                ids, custom_generate=specdec.method, target=target, **{CACHE_NAME: past}, **options
            )
    # A plain model becomes a new target at every call.
    first = specdec.generate(target.model, ids, "plain", **options)
    for model in (target.model, target):
        with pytest.raises(ValueError, match=f"{name}: .* another target's; .* load_target"):
            specdec.generate(
                model, first.sequences, "plain", **{name: first[CACHE_NAME]}, **options
            )
    with pytest.raises(
        ValueError, match="cache, past_key_values: expected one of the two, got both"
    ):
        specdec.generate(target, ids, "plain", **dict.fromkeys(CACHE_NAMES, first[CACHE_NAME]))
