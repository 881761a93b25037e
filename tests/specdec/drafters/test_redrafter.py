"""ReDrafter: losslessness in every variant, and settings that are refused."""

import pytest
import torch

from specdec.drafters import LookupDrafter, MixedDrafter
from specdec.drafters.protocol import Budget
from specdec.drafters.redrafter import ReDrafter, ReDrafterConfig, ReDrafterModel
from specdec.model.cache import Rows
from specdec.model.target import Target
from specdec.session import Session
from tiny import FAMILIES, VOCABULARY, library_greedy, random_prompt, tiny_model


def drafter_for(target, seed, *, vocabulary=None, **settings):
    torch.manual_seed(seed)
    width = target.config.hidden_size
    shape = {
        "exit_dim": 2 * width,
        "min_prob": 0.0,
        "min_step_prob": 0.0,
        "trained_length": 8,
        **settings,
    }
    config = ReDrafterConfig(hidden_size=width, **shape)
    model = ReDrafterModel(config, target.config.vocab_size, vocabulary)
    return ReDrafter(target, model)


VARIANTS = {
    "paper": {},
    "authors": {"keep": "final", "top_rule": 50},
    "no rnn": {"rnn": False},
    "projected": {"exit_dim": 32, "residual_blocks": 3},
    "no blocks": {"residual_blocks": 0},
    "one block": {"residual_blocks": 1},
    "tied": {"tied_head": True, "exit_dim": 40},
    "lean": {"tied_head": True, "vocabulary": torch.arange(0, VOCABULARY, 2)},
    "own small head": {"vocabulary": torch.arange(5, 40)},
    "exits": {"min_prob": 0.02, "min_step_prob": 0.2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_transformers_in_every_variant(family):
    model = tiny_model(family, 1)
    target = Target(model)
    prompts = [random_prompt(length, length) for length in (4, 13, 1)]
    expected = [library_greedy(model, p, 20) for p in prompts]
    for i, (name, settings) in enumerate(VARIANTS.items()):
        drafter = drafter_for(target, i, beam_width=5, draft_length=3, **settings)
        for drafters in (drafter, MixedDrafter([drafter, LookupDrafter()])):
            written = Session(target, drafters, max_nodes=12).generate(prompts, max_new_tokens=20)
            assert written.tokens == expected, name


@pytest.mark.sampled
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("width", [1, 2, 7, 64])
@pytest.mark.parametrize("length", [2, 5, 8])
def test_tokens_equal_transformers_at_every_beam_width_and_length(width, length, batch):
    model = tiny_model("llama", 2)
    target = Target(model)
    prompts = [random_prompt(3 + 4 * row, row) for row in range(batch)]
    expected = [library_greedy(model, p, 18) for p in prompts]
    for keep in ("final", "expanded"):
        drafter = drafter_for(target, 3, beam_width=width, draft_length=length, keep=keep)
        for max_nodes in (1, 16, 200):
            written = Session(target, drafter, max_nodes=max_nodes).generate(
                prompts, max_new_tokens=18
            )
            assert written.tokens == expected


def test_expanded_nodes_contain_the_final_beams():
    target = Target(tiny_model("llama", 3))
    context = torch.randn(2, target.config.hidden_size, dtype=torch.float64)
    paths = {}
    for keep in ("final", "expanded"):
        drafter = drafter_for(target, 4, beam_width=4, draft_length=4, keep=keep)

        class State:
            hidden = context
            roots = torch.tensor([3, 9])
            rows = Rows.first(2, torch.device("cpu"))
            text = torch.zeros(2, 1, dtype=torch.int64)
            sampling = None

        proposals = drafter.draft(State, Budget(64, 8, torch.tensor([8, 8])))
        paths[keep] = [set(), set()]
        for row in range(2):
            whole = []
            for token, parent in zip(
                proposals.tokens[row].tolist(), proposals.parents[row].tolist(), strict=True
            ):
                whole.append((whole[parent] if parent >= 0 else ()) + (token,))
            paths[keep][row] = set(whole)
    for final, expanded in zip(paths["final"], paths["expanded"], strict=True):
        assert final < expanded


def test_teacher_forced_features_equal_step_by_step_drafting():
    """Teacher-forced features over positions equal those of a beam search that is forced along the same tokens."""
    target = Target(tiny_model("llama", 5))
    drafter = drafter_for(target, 6, draft_length=4, beam_width=1)
    tokens = torch.tensor([[7, 11, 3, 20]])
    context = torch.randn(1, target.config.hidden_size, dtype=torch.float64)
    with torch.no_grad():
        trained = drafter.model(target.embed(tokens.T), context)
        step = drafter.model.step
        state = step.initial_state(context)
        for i in range(4):
            part = step.context_part(context)
            state, features = step(target.embed(tokens[:, i]), state, context, part)
            torch.testing.assert_close(drafter.model.head_input(features), trained[i])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam_width": 0}, "beam_width: expected 1 to 64, got 0"),
        ({"beam_width": 65}, "beam_width: expected 1 to 64, got 65"),
        ({"draft_length": 0}, "draft_length: expected 1 to 64, got 0"),
        ({"min_prob": 1.5}, "min_prob: expected 0 to 1, got 1.5"),
        ({"keep": "all"}, "keep: expected 'final' or 'expanded', got 'all'"),
        ({"top_rule": 51}, "top_rule: expected 1 to 50 or None, got 51"),
        ({"exit_dim": 0}, "exit_dim: expected at least 1, got 0"),
        ({"beam_width": 2.5}, "beam_width: expected 1 to 64, got 2.5"),
        ({"beam_width": "4"}, "beam_width: expected 1 to 64, got 4"),
        ({"min_prob": float("nan")}, "min_prob: expected 0 to 1, got nan"),
    ],
)
def test_out_of_range_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        ReDrafterConfig(**{"hidden_size": 8, "exit_dim": 16, **settings})


def test_model_of_another_hidden_size_is_rejected():
    target = Target(tiny_model("llama"))
    config = ReDrafterConfig(hidden_size=8, exit_dim=16)
    with pytest.raises(ValueError, match="hidden_size: expected the target's 48, got 8"):
        ReDrafter(target, ReDrafterModel(config, VOCABULARY))


def test_draft_length_beyond_trained_length_warns():
    target = Target(tiny_model("llama"))
    with pytest.warns(UserWarning, match="draft_length: expected at most the 2 tokens"):
        drafter_for(target, 0, trained_length=2, draft_length=3)


@pytest.mark.parametrize("ids", [[3, 3, 4], [5, 4], [-1, 2], [60, 61]])
def test_invalid_draft_vocabulary_is_rejected(ids):
    config = ReDrafterConfig(hidden_size=8, exit_dim=16)
    with pytest.raises(ValueError, match="draft_vocabulary: expected"):
        ReDrafterModel(config, VOCABULARY, torch.tensor(ids))


def test_rows_that_end_early_do_not_affect_other_rows():
    model = tiny_model("qwen2", 4)
    prompts = [random_prompt(length, length) for length in (3, 12, 6, 9)]
    full = [library_greedy(model, p, 20) for p in prompts]
    eos = [full[0][0], full[2][3]]  # the first row ends with the token that prefill gives
    expected = [library_greedy(model, p, 20, eos) for p in prompts]
    target = Target(model)
    drafter = drafter_for(target, 0, beam_width=4, draft_length=3)
    for drafters in (drafter, MixedDrafter([drafter, LookupDrafter()])):
        written = Session(target, drafters).generate(prompts, max_new_tokens=20, eos_token_ids=eos)
        assert written.tokens == expected


def test_sessions_sharing_a_drafter_are_independent():
    model = tiny_model("llama", 6)
    target = Target(model)
    drafter = drafter_for(target, 1, beam_width=3, draft_length=3)
    prompts = [random_prompt(5, 1), random_prompt(8, 2)]
    expected = [library_greedy(model, p, 15) for p in prompts]
    texts = [[], []]
    first = Session(target, drafter).stream(prompts, max_new_tokens=15)
    for emitted in first:
        for e in emitted:
            texts[e.row] += e.tokens
        Session(target, drafter).generate([random_prompt(4, 3)], max_new_tokens=3)
    assert texts == expected


def test_model_of_another_vocabulary_size_is_rejected():
    target = Target(tiny_model("llama"))
    config = ReDrafterConfig(hidden_size=48, exit_dim=96)
    with pytest.raises(
        ValueError, match=f"vocabulary_size: expected the target's {VOCABULARY}, got 200"
    ):
        ReDrafter(target, ReDrafterModel(config, 200))
