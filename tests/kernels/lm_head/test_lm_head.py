import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from specdec_kernels import HeadWeights, LMHeadTopK, lm_head_confidence, lm_head_topk
from specdec_kernels.ordered_topk import MARGIN, ordered_topk
from tiny import tiny_model


def slowly(values, k):
    """Indices of the k largest, the lowest among equals first."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 3), st.integers(1, 60), st.integers(1, 20), st.integers(1, 9), st.integers(0, 10**6)
)  # fmt: skip
def test_topk_orders_by_value_then_index(rows, size, k, distinct, seed):
    k = min(k, size)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-distinct, distinct, (rows, size), generator=generator).float()
    best, at = ordered_topk(values, k)
    for row in range(rows):
        expected = slowly(values[row].tolist(), k)
        assert at[row].tolist() == expected
        assert torch.equal(best[row], values[row][expected])


def test_topk_orders_more_ties_than_the_margin():
    values = torch.zeros(1, 10 * MARGIN)
    values[0, 50] = 1
    _, at = ordered_topk(values, 4)
    assert at.tolist() == [[50, 0, 1, 2]]


OPTIONS = [
    {},
    {"logit_scale": 0.25},
    {"softcap": 3.0},
    {"round_to": torch.bfloat16},
    {"logit_scale": 2.0, "softcap": 5.0, "round_to": torch.float16},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("k", [1, 5, 64])
def test_top_tokens_and_log_probs_equal_the_full_softmax(options, bias, k):
    generator = torch.Generator().manual_seed(k)
    hidden, weight = (torch.randn(n, 16, generator=generator) for n in (6, 90))
    added = torch.randn(90, generator=generator) if bias else None
    logits = torch.nn.functional.linear(hidden, weight, added)
    if "round_to" in options:
        logits = logits.to(options["round_to"])
    logits = logits * options.get("logit_scale", 1.0)
    if cap := options.get("softcap"):
        logits = cap * torch.tanh(logits / cap)
    log_probs = logits.float().log_softmax(-1)

    head = HeadWeights(weight, added, **options)
    top = lm_head_topk(hidden, head, k)
    for row in range(6):
        expected = slowly(logits[row].tolist(), k)
        assert top.ids[row].tolist() == expected
        torch.testing.assert_close(top.log_probs[row], log_probs[row, expected])
    torch.testing.assert_close(top.logsumexp, logits.float().logsumexp(-1))

    sure = lm_head_confidence(hidden, head)
    assert torch.equal(sure.tokens, top.ids[:, 0])
    torch.testing.assert_close(sure.confidence, log_probs.exp().amax(1))


def test_half_precision_inputs_are_summed_in_float32_unless_rounded():
    hidden, weight = torch.randn(4, 64).bfloat16(), torch.randn(200, 64).bfloat16()
    exact = (hidden.double() @ weight.double().T).log_softmax(-1)
    top = lm_head_topk(hidden, weight, 3)
    torch.testing.assert_close(
        top.log_probs.double(), exact.gather(1, top.ids), atol=1e-4, rtol=1e-4
    )


def test_draft_vocabulary_ids_are_mapped_to_target_ids():
    hidden, weight = torch.randn(3, 8), torch.randn(40, 8)
    vocabulary = torch.tensor([2, 3, 5, 7, 11, 13, 31])
    top = lm_head_topk(hidden, HeadWeights(weight[vocabulary], id_map=vocabulary), 4)
    logits = hidden @ weight[vocabulary].T
    assert torch.equal(top.ids, vocabulary[logits.topk(4).indices])
    module = LMHeadTopK(nn.Linear(8, 7, bias=False), id_map=vocabulary)
    module.linear.weight.data = weight[vocabulary]
    for ours, theirs in zip(module(hidden, 4), top, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(module.confidence(hidden).tokens, top.ids[:, 0])


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2"])
def test_draft_head_of_a_target_equals_the_models_logits(family):
    from specdec.model.target import Target

    target = Target(tiny_model(family))
    hidden = torch.randn(5, 48, dtype=torch.float64)
    expected = target.logits(hidden)
    torch.testing.assert_close(target.draft_head(None).logits(hidden), expected)
    some = torch.tensor([1, 4, 33])
    torch.testing.assert_close(target.draft_head(some).logits(hidden), expected[:, some])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((3, 8), (9, 7), 1), {}, "hidden, weight: expected shapes"),
        (((3, 8), (9, 8), 0), {}, "k: expected 1 to 9"),
        (((3, 8), (9, 8), 10), {}, "k: expected 1 to 9"),
        (((3, 8), (99, 8), 65), {}, "k: expected 1 to 64"),
        (((3, 8), (9, 8), 1), {"bias": torch.zeros(8)}, r"bias: expected shape \[9\]"),
        (((3, 8), (9, 8), 1), {"id_map": torch.zeros(8)}, r"id_map: expected shape \[9\]"),
    ],
)
def test_error_names_the_bad_argument(arguments, options, message):
    hidden, weight, k = arguments
    with pytest.raises(ValueError, match=message):
        lm_head_topk(torch.zeros(hidden), HeadWeights(torch.zeros(weight), **options), k)
