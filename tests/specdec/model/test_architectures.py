"""Model families: transformers' tokens, or an error that names the model."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import every_drafter
from families import DRAFTERS, REFUSED, WORKING, check_works, judge, tiny_of
from specdec import Session, load_target
from specdec.drafters.redrafter import ReDrafter, ReDrafterConfig, ReDrafterModel
from specdec.model.target import Target
from tiny import POSITIONS, VOCABULARY, library_greedy, random_prompt

THRESHOLD = 32


def known(model_type):
    if model_type not in CONFIG_MAPPING:
        pytest.skip("the library has no such family yet")
    return tiny_of(model_type)


@pytest.mark.parametrize("model_type", WORKING)
def test_tokens_equal_transformers_with_every_drafter(model_type):
    check_works(judge(known(model_type)))


@pytest.mark.parametrize("model_type", REFUSED)
def test_unsupported_families_are_rejected_with_the_reason(model_type):
    verdict = judge(known(model_type))
    assert not verdict.works
    assert re.search(REFUSED[model_type], verdict.reason), verdict.reason


def test_published_table_lists_these_families():
    results = Path(__file__).parents[3] / "bench" / "results" / "architectures.json"
    families = json.loads(results.read_text())["families"]
    assert {family["model_type"] for family in families if family["works"]} == set(WORKING)
    refused = {f["model_type"]: f["reason"] for f in families if not f["works"]}
    assert set(refused) == set(REFUSED)
    for model_type, reason in refused.items():
        assert re.search(REFUSED[model_type], reason), reason


ROPE = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0, "original_max_position_embeddings": THRESHOLD},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": THRESHOLD},
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": THRESHOLD,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + 0.5 * i for i in range(8)],
    },
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": THRESHOLD,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}


def test_every_rope_type_of_transformers_is_tested():
    assert set(ROPE) == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize("rope_type", ROPE)
def test_tokens_equal_transformers_with_every_rope_type(rope_type):
    rope = {"rope_type": rope_type, "rope_theta": 100.0, **ROPE[rope_type]}
    model = tiny_of("llama", rope_parameters=rope)
    target = load_target(model)
    prompts = [random_prompt(length, length) for length in (THRESHOLD - 12, 3)]
    expected = [library_greedy(model, prompt, 24) for prompt in prompts]
    if rope_type == "longrope":  # from there on another text would follow from the same prefix
        assert target.position_limit == THRESHOLD
        expected[0] = expected[0][:12]
    else:
        assert target.position_limit == POSITIONS
    for drafter in DRAFTERS:
        written = Session(target, drafter(target), max_nodes=16).generate(
            prompts, max_new_tokens=24
        )
        assert written.tokens == expected, drafter.__name__


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_learned_position_tables_limit_the_text_length(model_type):
    model = tiny_of(model_type)
    target = load_target(model)
    assert target.position_limit == POSITIONS
    prompts = [random_prompt(length, length) for length in (POSITIONS - 5, POSITIONS - 20)]
    expected = [library_greedy(model, p, POSITIONS - len(p)) for p in prompts]
    for drafter in DRAFTERS:
        written = Session(target, drafter(target), max_nodes=16).generate(
            prompts, max_new_tokens=40
        )
        assert written.tokens == expected, drafter.__name__


def test_embeddings_narrower_than_layers_are_projected():
    # The sizes of the 350 M model: projections on both sides, no norm at the end.
    model = tiny_of("opt", word_embed_proj_dim=24, do_layer_norm_before=False)
    target = load_target(model)
    prompts = [random_prompt(length, length) for length in (3, 11)]
    expected = [library_greedy(model, prompt, 12) for prompt in prompts]
    drafter = ReDrafter(
        target,
        ReDrafterModel(ReDrafterConfig(24, exit_dim=48, min_prob=0, min_step_prob=0), VOCABULARY),
    )
    for written_by in (every_drafter.plain(target), every_drafter.lookup(target), drafter):
        written = Session(target, written_by, max_nodes=16).generate(prompts, max_new_tokens=12)
        assert written.tokens == expected
    with pytest.raises(
        ValueError, match="expected a head as wide as the layers, 64, got one of 24"
    ):
        every_drafter.kangaroo(target)


@torch.inference_mode()
def test_draft_head_scales_logits_like_the_model():
    model = tiny_of("granite", logits_scaling=4.0)
    model.config.logit_scale = 0.5  # no family has both, so far
    target = Target(model)
    hidden = torch.randn(3, 64, dtype=torch.float64)
    top = target.draft_head(None)(hidden, 5)
    expected = target.logits(hidden).log_softmax(-1).topk(5)
    assert torch.equal(top.ids, expected.indices)
    torch.testing.assert_close(top.log_probs.double(), expected.values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_grouped_mm_experts_give_transformers_tokens(model_type):
    model = tiny_of(model_type, experts_implementation="grouped_mm").float()
    target = load_target(model)
    prompts = [random_prompt(length, length) for length in (3, 14)]
    expected = [library_greedy(model, prompt, 12) for prompt in prompts]
    for drafter in DRAFTERS:
        written = Session(target, drafter(target), max_nodes=16).generate(
            prompts, max_new_tokens=12
        )
        assert written.tokens == expected, drafter.__name__
