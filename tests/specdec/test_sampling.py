"""Sampling: the text is a function of model, prompt, seed, stream and settings, and drawn from the right distribution."""

import functools

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LogitsProcessor

import specdec
from every_drafter import DRAFTERS, lookup, mixed, plain
from scripted import ScriptedDrafter
from specdec.drafters import Drafter, Proposals
from specdec.model.target import Target
from specdec.pickers import PathPicker
from specdec.sampling import Sampling
from specdec.session import Session
from tiny import SHAPE, VOCABULARY, random_prompt, tiny_model

NEVER = [VOCABULARY + 1]
PROMPTS = [random_prompt(length, 40 + length) for length in (5, 12, 3, 9, 1, 7, 16, 4)]
SETTINGS = [
    {"temperature": 0.7, "top_p": 0.9, "top_k": 0},
    {"temperature": 1.0, "top_k": 0},
    {"temperature": 1.3, "top_k": 10},
    {"temperature": 1.0, "top_k": 0, "repetition_penalty": 1.2},
    {"min_p": 0.05, "top_k": 0},
    {"typical_p": 0.8, "top_k": 0},
    {"epsilon_cutoff": 0.02, "eta_cutoff": 0.03},
    {"no_repeat_ngram_size": 2, "temperature": 2.0},
]
IDS = [",".join(f"{k}={v}" for k, v in setting.items()) for setting in SETTINGS]


@functools.cache
def target_of(seed=9):
    return Target(tiny_model("llama", seed=seed))


def sample(prompts, drafter, *, count=14, **options):
    options = {
        "do_sample": True,
        "seed": 5,
        "eos_token_id": NEVER,
        "pad_token_id": 0,
        "max_nodes": 16,
    } | options
    out = specdec.generate(target_of(), prompts, drafter, max_new_tokens=count, **options)
    return out[:, max(map(len, prompts)) :].tolist()


def scripted(prompts, texts, right=0.8):
    """A drafter that knows how prompts go on, and is wrong now and then."""
    known = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    return ScriptedDrafter(known, right=right, seed=2, most_proposals=24, vocabulary=VOCABULARY)


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_sampled_tokens_do_not_depend_on_drafter_or_tree_size(setting):
    target = target_of()
    expected = sample(PROMPTS[:2], plain(target), **setting)
    assert expected != sample(PROMPTS[:2], plain(target), **setting, seed=6)
    for make in DRAFTERS[1:]:
        assert sample(PROMPTS[:2], make(target), **setting) == expected, make.__name__
    for max_nodes in (1, 3, 64):
        assert sample(PROMPTS[:2], mixed(target), **setting, max_nodes=max_nodes) == expected
    drafter = scripted(PROMPTS[:2], expected)
    assert sample(PROMPTS[:2], drafter, **setting) == expected
    assert max(drafter.accepted) >= 2


@pytest.mark.sampled
@pytest.mark.parametrize("make", DRAFTERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("rows", [2, 5, 8])
@pytest.mark.parametrize("how", ["greedy", "sampled"])
def test_batch_equals_its_rows_run_alone(make, rows, how):
    target = target_of()
    options = {"do_sample": how == "sampled", "temperature": 0.8, "top_k": 0} if how == "sampled" else {"do_sample": False, "seed": None}  # fmt: skip
    alone = [
        sample([p], plain(target), **options, **({"streams": [stream]} if how == "sampled" else {}))[0]
        for stream, p in enumerate(PROMPTS[:rows])
    ]  # fmt: skip
    assert sample(PROMPTS[:rows], make(target), **options) == alone
    # Rows that end in different rounds.
    ends = sorted({tokens[at] for at, tokens in zip((2, 9, 5, 0, 7), alone, strict=False)})
    cut = [
        tokens[: next((i + 1 for i, t in enumerate(tokens) if t in ends), len(tokens))]
        for tokens in alone
    ]
    longest = max(map(len, cut))
    filled = [tokens + [0] * (longest - len(tokens)) for tokens in cut]
    assert len({len(tokens) for tokens in cut}) > 1
    assert sample(PROMPTS[:rows], make(target), **options, eos_token_id=ends) == filled


def test_random_streams_follow_their_rows():
    target = target_of()
    expected = sample(PROMPTS[:3], lookup(target), streams=[7, 8, 9])
    order = [2, 0, 1]
    swapped = sample([PROMPTS[i] for i in order], plain(target), streams=[[7, 8, 9][i] for i in order])  # fmt: skip
    assert swapped == [expected[i] for i in order]


@pytest.mark.parametrize("make", [plain, mixed, DRAFTERS[4]], ids=lambda make: make.__name__)
def test_num_return_sequences_share_one_prefill_and_differ_by_stream(make, monkeypatch):
    target, read = target_of(), []
    prefill = target.prefill
    monkeypatch.setattr(
        target, "prefill", lambda ids, *rest: read.append(tuple(ids.shape)) or prefill(ids, *rest)
    )
    found = sample(PROMPTS[:2], make(target), num_return_sequences=3)
    assert read == [(2, 12)]
    copied = [p for p in PROMPTS[:2] for _ in range(3)]
    assert found == sample(copied, plain(target))
    assert len({tuple(tokens) for tokens in found[:3]}) == 3


class Unchanged(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


@pytest.mark.parametrize("setting", SETTINGS[:3], ids=IDS[:3])
def test_fused_settings_and_transformers_processors_sample_the_same_tokens(setting):
    fused = sample(PROMPTS[:2], mixed(target_of()), **setting)
    walked = sample(PROMPTS[:2], mixed(target_of()), **setting, logits_processor=[Unchanged()])
    assert fused == walked


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_sampled_distribution_equals_transformers_scores(setting):
    target, prompt = target_of(), PROMPTS[1]
    options = {
        "do_sample": True, "return_dict_in_generate": True, "output_scores": True, "eos_token_id": NEVER,
        "pad_token_id": 0, **setting,
    }  # fmt: skip
    ids = torch.tensor([prompt])
    (text,) = sample([prompt], plain(target), count=6, seed=1, **setting)
    drafter = scripted([prompt], [text], right=1.0)
    ours = specdec.generate(target, ids, drafter, max_new_tokens=6, seed=1, **options)
    assert ours.sequences[0, len(prompt) :].tolist() == text
    assert max(drafter.accepted) >= 2
    for at, scores in enumerate(ours.scores):
        so_far = ours.sequences[:, : len(prompt) + at]
        theirs = target.model.generate(
            so_far, attention_mask=torch.ones_like(so_far), max_new_tokens=1, **options
        )
        if "no_repeat_ngram_size" not in setting and "repetition_penalty" not in setting:
            assert scores.isfinite().any()
        torch.testing.assert_close(scores, theirs.scores[0])


def test_temperature_none_equals_temperature_1():
    target, options = target_of(), {"top_k": 0}
    expected = sample(PROMPTS[:2], plain(target), temperature=1.0, **options)
    assert sample(PROMPTS[:2], lookup(target), temperature=None, **options) == expected


def test_default_seed_comes_from_torch_manual_seed():
    target = target_of()
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(sample(PROMPTS[:1], lookup(target), seed=None))
    assert texts[0] == texts[1] != texts[2]


# Distributions.

SMALL = 7
DRAWS = 22_000


@functools.cache
def small_target():
    torch.manual_seed(3)
    config = LlamaConfig(
        **SHAPE | {"vocab_size": SMALL, "num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 24}
    )  # fmt: skip
    return Target(AutoModelForCausalLM.from_config(config).float().eval())


class Stubborn(Drafter):
    """Proposes the same two branches always, some of them unlikely."""

    def draft(self, state, budget):
        count = len(state.rows.host)
        tokens = torch.tensor([1, 4, 2, 5, 1]).expand(count, -1)
        parents = torch.tensor([-1, -1, 0, 1, 2]).expand(count, -1)
        depth = torch.tensor([1, 1, 2, 2, 3])
        valid = (depth <= budget.depth).expand(count, -1)
        scores = -depth.float().expand(count, -1)
        return Proposals(tokens, parents, scores, valid, torch.zeros_like(tokens))


def exact_pairs(target, prompt, temperature):
    """Probabilities of the second and third new token, `[SMALL, SMALL]`, by the model itself."""
    ids = torch.arange(SMALL)
    firsts = torch.cartesian_prod(ids, ids)
    texts = torch.cat([torch.tensor(prompt).expand(len(firsts), -1), firsts], 1)
    with torch.inference_mode():
        logits = target.model(texts, use_cache=False).logits.double() / temperature
    one, two, three = logits[:, -3:].softmax(-1).view(SMALL, SMALL, 3, SMALL).unbind(2)
    return torch.einsum("a,ab,abc->bc", one[0, 0], two[:, 0], three)


def draw_pairs(walk, prompt, parts):
    """Count the second and the third new token of many texts: both may come from a draft."""
    target, counts = small_target(), torch.zeros(SMALL, SMALL)
    for part in range(parts):
        streams = torch.arange(part * DRAWS, (part + 1) * DRAWS)
        sampling = Sampling(17, streams, temperature=0.9)
        session = Session(target, Stubborn(), max_nodes=6)
        generation = session.generate(
            [prompt], max_new_tokens=4, copies=DRAWS, picker=walk(sampling)
        )
        pairs = torch.tensor(generation.tokens)[:, 1:3]
        cells = torch.bincount(pairs[:, 0] * SMALL + pairs[:, 1], minlength=SMALL**2)
        counts += cells.view(SMALL, SMALL)
        assert generation.metrics.tokens_per_round > 1.05
    return counts


def chi_square_p(counts, probabilities):
    """Probability of counts at least this far off (Wilson-Hilferty), cells of few draws put together."""
    counts, expected = counts.flatten().double(), (probabilities * counts.sum()).flatten()
    rare = expected < 10
    merged = [torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected)]
    statistic = ((merged[0] - merged[1]) ** 2 / merged[1].clamp(min=1e-9)).sum().item()
    freedom = len(merged[0]) - 1
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    return 0.5 * torch.erfc(torch.tensor(z / 2**0.5)).item()


class TypicalAcceptance(PathPicker):
    """Takes a drafted token wherever it is likely enough: faster, and not the target's text (Medusa section 2.3.1)."""

    def pick(self, state, tree, logits):
        picked = super().pick(state, tree, logits)
        picked = torch.where(picked < 0, logits.argmax(-1), picked)
        if tree.tokens.shape[1] > 1:
            likely = logits[:, 0].softmax(-1).gather(1, tree.tokens[:, 1:2])[:, 0] > 0.1
            picked[:, 0] = torch.where(likely, tree.tokens[:, 1], picked[:, 0])
        return picked


@pytest.mark.slow
def test_sampled_frequencies_match_the_targets_distribution():
    prompt = [3, 1, 6]
    exact = exact_pairs(small_target(), prompt, 0.9)
    counts = draw_pairs(PathPicker, prompt, 10)
    assert counts.sum() >= 200_000
    assert chi_square_p(counts, exact) > 1e-3
    distance = (counts / counts.sum() - exact).abs().sum() / 2
    assert distance < 0.01


@pytest.mark.slow
def test_chi_square_detects_typical_acceptance():
    prompt = [3, 1, 6]
    exact = exact_pairs(small_target(), prompt, 0.9)
    biased = draw_pairs(TypicalAcceptance, prompt, 1)
    assert chi_square_p(biased, exact) < 1e-9
