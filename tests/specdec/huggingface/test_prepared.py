"""What the library prepares for a method is known for every family, and is told from what a caller gave."""

import json

import pytest
import torch
import transformers
from transformers import DynamicCache

import specdec
from bench.releases.prepared import RECORD, prepared_for, tiny
from families import VISION_LANGUAGE, WORKING, check_works, judge, tiny_vision_of
from specdec.huggingface.request import check_request
from specdec.model.target import Target
from tiny import VOCABULARY, library_greedy, random_prompt, tiny_model

NEVER = [VOCABULARY + 1]
RECORDED = json.loads(RECORD.read_text())
GROUPS = [(release, group["arguments"]) for release, groups in RECORDED.items() for group in groups]
# Of every kind of value in the record one, for a row of five tokens.
VALUES = {
    "None": None,
    "{}": {},
    "1": 1,
    "True": True,
    "DynamicCache": DynamicCache(),
    "torch.int64 [R, L]": torch.arange(5)[None],
    "torch.int64 [4, R, L]": torch.arange(5).expand(4, 1, 5),
}
CONFIG = transformers.GenerationConfig(use_cache=True)
MASK = torch.ones(1, 5, dtype=torch.int64)


@pytest.mark.parametrize("model_type", [*WORKING, *VISION_LANGUAGE])
def test_arguments_prepared_by_transformers_equal_the_record(model_type):
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip("the library has no such family yet")
    found = prepared_for(tiny(model_type))
    if transformers.__version__ in RECORDED:
        groups = RECORDED[transformers.__version__]
        [recorded] = [g["arguments"] for g in groups if model_type in g["families"]]
        assert found == recorded
    else:
        recorded = [
            g["arguments"]
            for groups in RECORDED.values()
            for g in groups
            if model_type in g["families"]
        ]
        kinds = {(name, kind) for arguments in recorded for name, kind in arguments.items()}
        assert set(found.items()) <= kinds


@pytest.mark.parametrize(("release", "arguments"), GROUPS)
def test_recorded_arguments_are_accepted(release, arguments):
    for kind in range(2):
        given = {name: VALUES[kinds.split(" or ")[-kind]] for name, kinds in arguments.items()}
        check_request(CONFIG, False, MASK, given | {"attention_mask": MASK})


@pytest.mark.parametrize(
    "value",
    [None, False, {}, [], (), {"image": None, "video": []}, transformers.utils.ModelOutput()],
)
def test_empty_values_of_unknown_arguments_are_accepted(value):
    check_request(CONFIG, False, MASK, {"mm_encoder_outputs": value, "anything": value})


OWN = {
    "token_type_ids": torch.zeros(1, 5, dtype=torch.int64),
    "encoder_outputs": (torch.zeros(1, 5, 4),),
    "encoder_hidden_states": torch.zeros(1, 5, 4),
    "mm_token_type_ids": torch.zeros(1, 5, dtype=torch.int64),
    "mm_encoder_outputs": {"image": torch.zeros(1, 4)},
    "pixel_values": torch.zeros(1, 3, 16, 16),
    "logits_to_keep": 3,
    "position_ids": torch.arange(1, 6)[None],
    "output_router_logits": True,
    "number": 0,
}


@pytest.mark.parametrize("name", OWN)
def test_error_names_unsupported_model_arguments(name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        check_request(CONFIG, False, MASK, {name: OWN[name]})
    # Before the library can act on it, too.
    target = Target(tiny_model("llama", seed=6))
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        specdec.generate(target, MASK + 4, "plain", max_new_tokens=2, **{name: OWN[name]})


@pytest.mark.parametrize(
    "positions",
    [
        torch.arange(5),
        torch.arange(6)[None],
        torch.arange(5).expand(2, 5),
        torch.stack([torch.arange(5), torch.arange(5) + 1])[:, None],
        [[0, 1, 2, 3, 4]],
    ],
)
def test_position_ids_that_contradict_the_mask_are_rejected(positions):
    with pytest.raises(
        ValueError, match="^position_ids: expected those that follow from attention_mask"
    ):
        check_request(CONFIG, False, MASK, {"position_ids": positions})


@pytest.mark.parametrize("model_type", VISION_LANGUAGE)
def test_text_of_a_vision_language_model_equals_transformers(model_type):
    model, ids = tiny_vision_of(model_type), torch.tensor([random_prompt(7, 7)])
    verdict = judge(model)
    check_works(verdict)
    if not verdict.works:
        return
    expected = library_greedy(model, ids[0].tolist(), 6)
    target, options = specdec.load_target(model), {"max_new_tokens": 6, "eos_token_id": NEVER}
    pictured = {"pixel_values": torch.zeros(1, 3, 16, 16, dtype=torch.float64)}
    called = {"custom_generate": specdec.method, "target": target, "drafter": "lookup"}
    assert specdec.generate(target, ids, "lookup", **options)[0, 7:].tolist() == expected
    assert model.generate(ids, **called, **options)[0, 7:].tolist() == expected
    with pytest.raises(ValueError, match="^pixel_values: expected"):
        specdec.generate(target, ids, "lookup", **pictured, **options)
